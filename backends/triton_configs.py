"""Turns an architecture, an element type and head dimensions into tile shapes for Triton's attention kernels.

The lists below were found by compiling flash attention for every family, and hold what came out without spills
(``tests/test_backends/test_triton_configs.py`` compiles them again). Best guess first; the last one is small enough
for any variant. What an estimate of shared memory or registers rules out is left out, all but the last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from attncompiler.backends.gpu_targets import Target

Kind = Literal["forward", "rows", "columns"]
Family = Literal["wgmma", "tcgen05", "mma", "mfma", "mfma_float32", "fma"]
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_KIB = 1024
# Registers a thread can spend on float32 tiles before the compiler spills, by who multiplies. Loads by pointer take
# 30 to 60 more than descriptors; tcgen05 keeps its sums in tensor memory.
_TILE_REGISTERS = {
    "wgmma": 224,
    "tcgen05": 256,
    "mma": 200,
    "mfma": 400,
    "mfma_float32": 400,
    "fma": 255,
}
_POINTER_REGISTERS = 50


@dataclass(frozen=True, slots=True)
class Config:
    """A tile of ``block_m`` queries by ``block_n`` keys, and how a block works on it.

    ``num_stages`` is how many tiles are in flight, ``descriptors`` whether whole tiles are loaded by the tensor
    memory accelerator instead of by pointers.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False


_Seeds = tuple[tuple[int, int, int, int], ...]
# By the larger padded head dimension: block_m, block_n, warps, stages.
_FORWARD: dict[Family, dict[int, _Seeds]] = {
    "wgmma": {
        64: ((128, 128, 8, 2), (128, 64, 4, 3), (64, 128, 4, 2), (128, 64, 8, 3), (64, 64, 4, 3), (64, 32, 4, 2)),
        128: ((128, 128, 8, 2), (128, 64, 8, 3), (64, 128, 4, 2), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 2)),
        256: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 8, 2), (64, 16, 8, 2)),
        512: ((64, 32, 8, 2), (64, 16, 8, 2), (16, 16, 8, 1)),
    },
    "tcgen05": {
        64: ((128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 4, 3), (64, 128, 4, 2), (64, 64, 4, 3), (64, 32, 4, 2)),
        128: ((128, 128, 8, 2), (128, 64, 4, 3), (64, 128, 4, 2), (128, 64, 8, 3), (64, 64, 4, 2), (64, 32, 4, 2)),
        256: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 8, 2), (64, 16, 8, 2)),
        512: ((64, 32, 8, 2), (64, 16, 8, 2), (16, 16, 8, 1)),
    },
    "mma": {
        64: ((128, 64, 8, 3), (128, 64, 4, 3), (64, 64, 4, 3), (64, 128, 4, 2), (64, 32, 4, 2)),
        128: ((128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 2), (128, 32, 8, 2), (64, 32, 4, 2)),
        256: ((64, 32, 8, 2), (64, 64, 8, 2), (32, 32, 4, 2), (16, 32, 4, 1)),
        512: ((32, 16, 8, 2), (32, 16, 8, 1), (16, 16, 8, 1)),
    },
    "mfma": {
        64: ((128, 64, 4, 1), (128, 64, 4, 2), (64, 64, 4, 2), (128, 64, 8, 1), (64, 32, 4, 1)),
        128: ((128, 64, 4, 1), (64, 64, 4, 2), (64, 64, 4, 1), (128, 64, 8, 1), (64, 32, 4, 1)),
        256: ((64, 32, 4, 1), (128, 32, 4, 1), (32, 32, 4, 1)),
        512: ((64, 16, 4, 1), (32, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1)),
    },
    "mfma_float32": {
        64: ((64, 32, 4, 1), (64, 64, 8, 1), (32, 32, 4, 2), (32, 32, 4, 1)),
        128: ((64, 32, 4, 1), (64, 32, 8, 1), (32, 32, 4, 1), (32, 16, 4, 1)),
        256: ((32, 16, 4, 1), (32, 32, 4, 1), (16, 16, 4, 1)),
        512: ((16, 16, 4, 1),),
    },
    "fma": {
        64: ((32, 32, 4, 2), (64, 32, 8, 1), (32, 32, 8, 1), (16, 16, 4, 2)),
        128: ((32, 16, 8, 1), (16, 32, 8, 1), (32, 32, 8, 1), (16, 16, 8, 1)),
        256: ((16, 32, 8, 1), (16, 16, 8, 1), (16, 16, 16, 1)),
        512: ((16, 16, 16, 1), (16, 32, 16, 1), (16, 16, 8, 1)),
    },
}  # fmt: skip
_ROWS: dict[Family, dict[int, _Seeds]] = {
    "wgmma": {
        64: ((128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 2)),
        128: ((128, 64, 8, 2), (64, 64, 4, 2), (128, 128, 8, 2), (64, 32, 4, 2)),
        256: ((64, 32, 8, 2), (64, 64, 8, 1), (32, 32, 8, 1)),
        512: ((32, 32, 8, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
    },
    "tcgen05": {
        64: ((128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 2)),
        128: ((128, 64, 8, 2), (64, 64, 4, 2), (128, 128, 8, 2), (64, 32, 4, 2)),
        256: ((64, 32, 8, 2), (64, 64, 8, 1), (32, 32, 8, 1)),
        512: ((32, 32, 8, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
    },
    "mma": {
        64: ((128, 64, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 2)),
        128: ((64, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2)),
        256: ((32, 32, 8, 2), (32, 32, 8, 1), (32, 16, 4, 1), (16, 16, 8, 1)),
        512: ((32, 16, 8, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
    },
    "mfma": {
        64: ((128, 32, 4, 1), (64, 64, 4, 1), (64, 32, 4, 1), (32, 32, 4, 1)),
        128: ((128, 32, 4, 1), (64, 32, 4, 1), (64, 64, 4, 1), (32, 32, 4, 1)),
        256: ((64, 32, 4, 1), (32, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1)),
        512: ((16, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1)),
    },
    "mfma_float32": {
        64: ((64, 32, 4, 1), (64, 32, 8, 1), (32, 32, 4, 1), (16, 16, 4, 1)),
        128: ((32, 32, 4, 1), (64, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1)),
        256: ((32, 16, 4, 1), (16, 16, 4, 1)),
        512: ((16, 16, 4, 1),),
    },
    "fma": {
        64: ((64, 32, 8, 1), (32, 32, 4, 2), (32, 32, 8, 1), (16, 16, 4, 1)),
        128: ((32, 32, 8, 1), (32, 16, 8, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
        256: ((16, 32, 8, 1), (32, 16, 8, 1), (16, 16, 8, 1)),
        512: ((16, 16, 16, 1), (16, 16, 8, 1)),
    },
}  # fmt: skip
_COLUMNS: dict[Family, dict[int, _Seeds]] = {
    "wgmma": {
        64: ((64, 128, 8, 2), (32, 128, 8, 2), (64, 64, 4, 2), (32, 64, 4, 2), (32, 64, 8, 2)),
        128: ((32, 128, 8, 2), (64, 128, 8, 2), (64, 64, 8, 2), (32, 64, 4, 2), (32, 64, 8, 2)),
        256: ((32, 32, 8, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
        512: ((16, 32, 8, 1), (16, 16, 4, 1), (16, 16, 8, 1)),
    },
    "tcgen05": {
        64: ((64, 128, 8, 2), (32, 128, 8, 2), (64, 64, 4, 2), (32, 64, 4, 2), (32, 64, 8, 2)),
        128: ((64, 128, 8, 2), (32, 128, 8, 2), (64, 64, 4, 2), (64, 64, 8, 2), (32, 64, 4, 2)),
        256: ((32, 32, 8, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
        512: ((16, 32, 8, 1), (16, 16, 4, 1), (16, 16, 8, 1)),
    },
    "mma": {
        64: ((32, 128, 8, 2), (64, 128, 8, 2), (64, 64, 8, 2), (32, 64, 4, 2), (32, 64, 8, 2)),
        128: ((32, 64, 8, 2), (16, 128, 8, 2), (16, 64, 4, 2), (16, 32, 4, 1)),
        256: ((16, 32, 8, 2), (32, 32, 8, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
        512: ((16, 16, 8, 1),),
    },
    "mfma": {
        64: ((32, 64, 4, 1), (64, 64, 4, 1), (32, 128, 4, 1), (16, 64, 4, 1), (16, 32, 4, 1)),
        128: ((32, 64, 4, 1), (16, 128, 4, 1), (16, 64, 4, 1), (32, 32, 4, 1), (16, 32, 4, 1)),
        256: ((16, 64, 4, 1), (32, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
        512: ((16, 16, 4, 1),),
    },
    "mfma_float32": {
        64: ((32, 32, 4, 1), (16, 64, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
        128: ((16, 32, 4, 1), (32, 32, 4, 1), (16, 64, 4, 1), (16, 16, 4, 1)),
        256: ((16, 32, 4, 1), (16, 16, 4, 1)),
        512: ((16, 16, 4, 1),),
    },
    "fma": {
        64: ((32, 32, 8, 1), (32, 64, 8, 1), (32, 32, 4, 1), (16, 16, 4, 1)),
        128: ((32, 16, 8, 1), (32, 32, 8, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
        256: ((16, 32, 8, 1), (16, 16, 16, 1), (16, 16, 8, 1)),
        512: ((16, 16, 16, 1), (16, 16, 8, 1)),
    },
}  # fmt: skip


def forward_configs(
    target: Target, dtype: str, head_dim: int, value_dim: int, accumulators: int = 1
) -> tuple[Config, ...]:
    """Shapes for a forward kernel that keeps ``accumulators`` weighted sums of values; best first, never empty.

    ``dtype`` is the inputs' ("float32", "bfloat16", "float16"); head dimensions are those before padding, 1 to 512.
    """
    return _configs("forward", target, dtype, head_dim, value_dim, accumulators)


def backward_configs(
    target: Target, dtype: str, head_dim: int, value_dim: int, kind: Literal["rows", "columns"]
) -> tuple[Config, ...]:
    """Shapes for the backward kernel that owns blocks of queries (rows: dq) or of keys (columns: dk and dv)."""
    return _configs(kind, target, dtype, head_dim, value_dim, 1)


def padded_dim(dim: int) -> int:
    """The length of a tile's side that holds ``dim`` lanes: a power of two of at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def shared_estimate(
    kind: Kind, config: Config, target: Target, dtype: str, head_dim: int, value_dim: int
) -> int:
    """Bytes of shared memory a block takes, at most: resident tiles, those in flight, score tiles to multiply again.

    Exact within a KiB for most shapes. Where tensor cores read their operands from shared memory one tile more is in
    flight than elsewhere; AMD keeps what is resident in registers and passes it through memory once.
    """
    d, v = padded_dim(head_dim), padded_dim(value_dim)
    m, n, stages = config.block_m, config.block_n, config.num_stages
    family = _family(target, dtype)
    owned, walked = (n, m) if kind == "columns" else (m, n)
    resident = m * d if kind == "forward" else owned * (d + v)
    streamed = walked * (d + v)
    if family in ("mfma", "mfma_float32"):
        elements = max(max(m, n) * max(d, v), (stages - 1) * streamed + m * n)
        return _ELEMENT_BYTES[dtype] * elements
    if family in ("wgmma", "tcgen05"):
        # A row of a score tile takes at least 128 bytes; Blackwell's tiles have 128 rows.
        tile = max(owned, 128 if family == "tcgen05" else 0) * max(walked, 64)
        scores = {"forward": 0, "rows": 1, "columns": 2}[kind] * tile
        elements = resident + stages * streamed + scores
    else:
        # Without a pipeline, tiles that are multiplied twice lie in memory in two orders.
        twice = stages == 1 and family == "mma" and kind != "forward"
        elements = resident + (2 if twice else max(stages - 1, 1)) * streamed
        # Weights stay in registers where every warp has rows of its own.
        own_rows = family == "mma" and kind == "forward" and m >= 128
        elements += 0 if own_rows else (4 if kind == "columns" else 1) * m * n
    return _ELEMENT_BYTES[dtype] * elements + _KIB


def _configs(
    kind: Kind, target: Target, dtype: str, head_dim: int, value_dim: int, accumulators: int
) -> tuple[Config, ...]:
    family = _family(target, dtype)
    table = {"forward": _FORWARD, "rows": _ROWS, "columns": _COLUMNS}[kind][family]
    side = max(padded_dim(head_dim), padded_dim(value_dim))
    seeds = table[min(limit for limit in table if limit >= min(side, 512))]
    # The accelerator wants rows whose bytes 16 divides.
    whole = all(dim * _ELEMENT_BYTES[dtype] % 16 == 0 for dim in (head_dim, value_dim))
    descriptors = target.descriptors and whole and family != "fma"
    found = [Config(*seed, descriptors) for seed in seeds]

    def fits(config: Config) -> bool:
        shared = shared_estimate(kind, config, target, dtype, head_dim, value_dim)
        room = _TILE_REGISTERS[family] - (0 if descriptors else _POINTER_REGISTERS)
        tiles = _tile_registers(kind, config, target, head_dim, value_dim, accumulators)
        return shared <= target.shared_per_block and (family == "fma" or tiles <= room)

    last = found[-1]
    if shared_estimate(kind, last, target, dtype, head_dim, value_dim) > target.shared_per_block:
        last = _halved(kind, last)
    return (*(config for config in found[:-1] if fits(config)), last)


def _halved(kind: Kind, config: Config) -> Config:
    """Half as many rows that stay: where four float32 tiles of 16 wide rows are more than a block's memory."""
    if kind == "columns":
        return replace(config, block_n=config.block_n // 2)
    return replace(config, block_m=config.block_m // 2)


def _tile_registers(
    kind: Kind, config: Config, target: Target, head_dim: int, value_dim: int, accumulators: int
) -> float:
    """Registers a thread spends on sums and scores, which are kept in float32, packed weights at half a register."""
    d, v = padded_dim(head_dim), padded_dim(value_dim)
    m, n = config.block_m, config.block_n
    threads = config.num_warps * target.warp_size
    if kind == "forward":
        return m * (accumulators * v + 1.5 * n) / threads
    return (m * d if kind == "rows" else n * (d + v)) / threads + 2 * m * n / threads


def _family(target: Target, dtype: str) -> Family:
    """Who multiplies: on NVIDIA, float32 in full precision is left to ordinary multiply-adds."""
    if not target.is_nvidia:
        return "mfma_float32" if dtype == "float32" else "mfma"
    if dtype == "float32":
        return "fma"
    return {"sm_90": "wgmma", "sm_100": "tcgen05"}.get(target.name, "mma")  # type: ignore[return-value]
