"""Turns an architecture, an element type and head dimensions into tile shapes for Triton's attention kernels.

What an estimate of shared memory or registers rules out is left out of the lists of ``triton_seeds.py``, all but the
last. Registers depend on the variant by what its kernel keeps beside the tiles of a plain softmax (``Extra``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from attncompiler.backends.gpu_targets import EIGHT_BITS, Target
from attncompiler.backends.tile_config import Config as Config
from attncompiler.backends.tile_config import Kind as Kind
from attncompiler.backends.triton_seeds import COLUMNS, FORWARD, FORWARD_EIGHT_BITS, ROWS, Family
from attncompiler.backends.triton_work import Extra

_KINDS: tuple[Kind, ...] = ("forward", "rows", "columns")
_WARP_GROUP_ROWS = 64
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2} | dict.fromkeys(EIGHT_BITS, 1)
_KIB = 1024
# Registers that a thread can spend on float32 tiles and on vectors across them before the compiler spills, by who
# multiplies and for the forward kernel, that of rows and that of columns. Whatever else a kernel needs is left out:
# the numbers were read off generated kernels (tests/test_backends/test_generated_resources.py compiles them).
_TILE_REGISTERS: dict[Family, tuple[int, int, int]] = {
    "wgmma": (170, 167, 185),
    "tcgen05": (145, 143, 155),
    "mma": (130, 122, 144),
    "mfma": (338, 338, 350),
    "mfma_float32": (350, 350, 350),
    "fma": (255, 255, 255),
}
# What a value of a vector across a tile takes, those that are computed with it counted in, for the same kernels.
_USED: dict[Family, tuple[float, float, float]] = {
    "wgmma": (1.5, 1.5, 1.5),
    "tcgen05": (0.65, 0.65, 1.0),
    "mma": (1.5, 1.5, 1.5),
    "mfma": (0.5, 0.0, 8.0),
    "mfma_float32": (0.0, 0.0, 8.0),
    "fma": (0.0, 0.0, 0.0),
}
# What a vector across takes in a third stage, where that is more than addresses.
_STAGED: dict[Family, float] = {"tcgen05": 40}
# What a value of pairs that is kept takes, in tiles.
_HELD: dict[Family, tuple[float, float, float]] = {
    "wgmma": (0.75, 0.5, 1.5),
    "tcgen05": (0.5, 0.5, 0.75),
    "mma": (2.5, 1.5, 0.5),
    "mfma": (0.5, 0.5, 20.0),
    "mfma_float32": (0.5, 0.5, 20.0),
    "fma": (0.0, 0.0, 0.0),
}
# What a register of a pair takes where it is not one, for the same kernels; and scores that are turned, in registers.
_PAIRS: dict[Family, tuple[float, float, float]] = {"mma": (3.0, 3.0, 1.0), "mfma": (1.5, 1.5, 1.0)}
# in a pipeline, and without one.
_TURNED: dict[Family, tuple[float, float]] = {"mma": (24.0, 24.0), "wgmma": (10.0, 0.0)}
# What a number of pairs that formulas and the mask share takes, in registers a pair, for the same kernels.
_COMMON: dict[Family, tuple[float, float, float]] = {
    "wgmma": (1.25, 1.25, 1.25),
    "tcgen05": (1.1, 1.1, 1.1),
    "mma": (2.7, 1.0, 1.0),
}
# Values that a thread has of a vector down a tile, by who multiplies.
_DOWN: dict[Family, float] = {
    "wgmma": 2, "tcgen05": 1, "mma": 2, "mfma": 1, "mfma_float32": 1, "fma": 2,
}  # fmt: skip
# Registers for tiles of rows by value features, while no walk is under way.
_FEATURE_REGISTERS = 256
# Of AMD's 512 registers those that a thread lacks where two warps share a quarter of the file.
_HALF_OF_AMD = 256
# Sums of values beyond the first take more than their own registers on AMD, which copies what is multiplied.
_MORE_SUMS: dict[Family, float] = {"mfma": 0.7}
# Loads by pointer take more than descriptors, those of rows that begin anywhere more than whole vectors.
_POINTER_REGISTERS = 35
_ODD_REGISTERS = 10
# 8-bit floats are loaded one by one, and the queries of a warp group stay in registers as float16.
_EIGHT_BIT_REGISTERS = 45
PLAIN = Extra()


def configs(
    kind: Kind, target: Target, dtype: str, head_dim: int, value_dim: int, extra: Extra = PLAIN
) -> tuple[Config, ...]:
    """Shapes for a forward kernel or for a backward one, that owns queries (rows: dq) or keys (columns: dk and dv).

    Best first, never empty. ``dtype`` is the inputs' ("float32", "bfloat16", "float16"; of a forward also an 8-bit
    float); head dimensions are those before padding, 1 to 512; ``extra`` is what the kernel keeps beside a plain
    softmax's tiles.
    """
    family = _family(target, dtype)
    found = _seeds(kind, target, dtype, head_dim, value_dim)
    # The lists of wide heads were read off such.
    odd = max(head_dim, value_dim) <= 128 and not _whole(dtype, head_dim, value_dim)

    def fits(config: Config) -> bool:
        shared = shared_estimate(kind, config, target, dtype, head_dim, value_dim, extra)
        pointers = target.descriptors and not config.descriptors
        pointers |= family == "mma" and kind != "forward" and odd
        room = _TILE_REGISTERS[family][_KINDS.index(kind)] - (_POINTER_REGISTERS if pointers else 0)
        room -= _ODD_REGISTERS if odd and target.descriptors else 0
        room -= _HALF_OF_AMD if not target.is_nvidia and config.num_warps > 4 else 0
        tiles = _tile_registers(kind, config, target, (head_dim, value_dim), extra, family)
        if dtype in EIGHT_BITS:
            queries = config.block_m * padded_dim(head_dim) / (64 * config.num_warps)
            tiles += _EIGHT_BIT_REGISTERS if pointers else 0
            tiles += queries if family == "wgmma" else 0
        features = _feature_registers(config, target, value_dim, extra, family)
        beyond = max(features - _features_room(target), 0)
        if kind == "forward":
            # What is left of a walk is the sums.
            tiles += beyond / 4
        elif kind == "rows" and beyond > 0:
            return False
        return shared <= target.shared_per_block and (family == "fma" or tiles <= room)

    last = found[-1]
    taken = shared_estimate(kind, last, target, dtype, head_dim, value_dim, extra)
    if taken > target.shared_per_block:
        last = _halved(kind, last)
    sure = (config for config in found[:-1] if fits(config))
    # The estimate of registers does not tell in which formulas the last of this list spills: a few of float16.
    wide = family == "mma" and 64 < max(map(padded_dim, (head_dim, value_dim))) <= 128
    if kind == "forward" and wide and dtype not in EIGHT_BITS:
        return (*sure, last, replace(last, block_m=last.block_m // 2))
    return (*sure, last)


def candidates(
    kind: Kind, target: Target, dtype: str, head_dim: int, value_dim: int, extra: Extra = PLAIN
) -> tuple[Config, ...]:
    """``configs``, then those that only the estimate of registers rules out: for who compiles them and looks."""
    sure = configs(kind, target, dtype, head_dim, value_dim, extra)
    others = (
        c
        for c in _seeds(kind, target, dtype, head_dim, value_dim)
        if shared_estimate(kind, c, target, dtype, head_dim, value_dim, extra)
        <= target.shared_per_block
    )
    return tuple(dict.fromkeys((*sure, *others)))


def forward_configs(
    target: Target, dtype: str, head_dim: int, value_dim: int, accumulators: int = 1
) -> tuple[Config, ...]:
    """``configs`` of a forward kernel that keeps ``accumulators`` weighted sums of values."""
    return configs("forward", target, dtype, head_dim, value_dim, Extra(accumulators))


def backward_configs(
    target: Target, dtype: str, head_dim: int, value_dim: int, kind: Literal["rows", "columns"]
) -> tuple[Config, ...]:
    """``configs`` of a backward kernel."""
    return configs(kind, target, dtype, head_dim, value_dim)


def padded_dim(dim: int) -> int:
    """The length of a tile's side that holds ``dim`` lanes: a power of two of at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def head_width(head_dim: int, dtype: str) -> int:
    """``padded_dim`` of queries and keys: a matrix instruction takes 32 bytes of each."""
    return max(padded_dim(head_dim), 32 // _ELEMENT_BYTES[dtype])


def shared_estimate(
    kind: Kind,
    config: Config,
    target: Target,
    dtype: str,
    head_dim: int,
    value_dim: int,
    extra: Extra = PLAIN,
) -> int:
    """Bytes of shared memory a block takes, at most: resident tiles, those in flight, score tiles to multiply again.

    Exact within a KiB for most shapes. Where tensor cores read their operands from shared memory one tile more is in
    flight than elsewhere. AMD keeps what is resident in registers and passes it through memory once: as float32 rows
    of features that meet those of a tensor, and results that it cannot store a few at a time.
    """
    d, v = padded_dim(head_dim), padded_dim(value_dim)
    m, n, stages = config.block_m, config.block_n, config.num_stages
    family = _family(target, dtype)
    if dtype in EIGHT_BITS:
        return _eight_bit_estimate(config, family, head_width(head_dim, dtype), v)
    owned, walked = (n, m) if kind == "columns" else (m, n)
    if config.chunk:
        # Chunks in flight give way to the whole rows that the gradients are summed from.
        chunks = stages * (m + n) * min(config.chunk, max(d, v))
        summed = d if kind == "rows" else d + v if target.is_nvidia else max(d, v)
        elements = max(chunks, walked * summed) + 2 * m * n
        return _ELEMENT_BYTES[dtype] * elements + _KIB
    resident = m * d if kind == "forward" else owned * (d + v)
    streamed = walked * (d + v)
    if family in ("mfma", "mfma_float32"):
        elements = max(max(m, n) * max(d, v), (stages - 1) * streamed + m * n)
        worked = extra.loaded and kind != "columns"
        rows = 4 * m * v if worked or (kind == "forward" and value_dim % 4) else 0
        return max(_ELEMENT_BYTES[dtype] * elements, rows)
    if family in ("wgmma", "tcgen05"):
        # A row of a score tile takes at least 128 bytes; Blackwell's tiles have 128 rows.
        tile = max(owned, 128 if family == "tcgen05" else 0) * max(walked, 64)
        scores = {"forward": 0, "rows": 1, "columns": 2}[kind] * tile
        elements = resident + stages * streamed + scores
        # Of the weights that are multiplied from tensor memory a part goes through shared memory.
        elements += n * d // 2 if family == "tcgen05" and kind == "forward" else 0
    else:
        # Without a pipeline, tiles that are multiplied twice lie in memory in two orders.
        twice = stages == 1 and family == "mma" and kind != "forward"
        elements = resident + (2 if twice else max(stages - 1, 1)) * streamed
        # Weights stay in registers where every warp has rows of its own.
        own_rows = family == "mma" and kind == "forward" and m >= 128
        elements += 0 if own_rows else (4 if kind == "columns" else 1) * m * n
    # Sums of a forward pass through memory as float32, once the walks have left it.
    return max(_ELEMENT_BYTES[dtype] * elements, 4 * m * v if kind == "forward" else 0) + _KIB


def _eight_bit_estimate(config: Config, family: Family, d: int, v: int) -> int:
    """The same of a forward of 8-bit floats: beside tiles as they are loaded lie converted ones, of 16 bits."""
    m, n, stages = config.block_m, config.block_n, config.num_stages
    streamed, converted = n * (d + v), 2 * n * max(d, v)
    if family == "mfma":
        return max(max(m, n) * max(d, v), (stages - 1) * streamed + max(2 * m * n, converted))
    if family in ("wgmma", "tcgen05"):
        return m * d + stages * streamed + converted + _KIB
    weights = 0 if m >= 128 else 2 * m * n
    return 2 * m * d + max(stages - 1, 1) * streamed + converted + weights + _KIB


def _seeds(kind: Kind, target: Target, dtype: str, head_dim: int, value_dim: int) -> list[Config]:
    """The list of a family and a head dimension, whether or not a configuration fits."""
    family = _family(target, dtype)
    side = max(padded_dim(head_dim), padded_dim(value_dim))
    table = {"forward": FORWARD, "rows": ROWS, "columns": COLUMNS}[kind][family]
    if dtype in EIGHT_BITS:
        table = table | FORWARD_EIGHT_BITS.get(family, {})
    seeds = table[min(limit for limit in table if limit >= min(side, 512))]
    descriptors = target.descriptors and _whole(dtype, head_dim, value_dim) and family != "fma"
    # Where single warps multiply, wide rows in the accelerator's order take more registers than by pointers.
    least = _WARP_GROUP_ROWS if side > 128 and dtype not in EIGHT_BITS else 0

    def described(seed: Sequence[int]) -> bool:
        return descriptors and not seed[4:] and seed[kind == "columns"] >= least

    return [Config(*seed[:4], described(seed), *seed[4:]) for seed in seeds]


def _whole(dtype: str, *dims: int) -> bool:
    """Whether 16 divides the bytes of rows: the accelerator wants that, and others load fewer bytes at a time."""
    return all(dim * _ELEMENT_BYTES[dtype] % 16 == 0 for dim in dims)


def _halved(kind: Kind, config: Config) -> Config:
    """Half as many rows that stay: where four float32 tiles of 16 wide rows are more than a block's memory."""
    if kind == "columns":
        return replace(config, block_n=config.block_n // 2)
    return replace(config, block_m=config.block_m // 2)


def _tile_registers(
    kind: Kind, config: Config, target: Target, dims: tuple[int, int], extra: Extra, family: Family
) -> float:
    """Registers a thread spends on sums and scores, kept in float32, packed weights at half a register; on vectors.

    Of a vector across a tile a thread holds a quarter where a warp group multiplies, less where warps share a row, and
    on Blackwell, where it holds a row of a tile, half or all; what is computed with it comes on top.
    """
    d, v = map(padded_dim, dims)
    m, n = config.block_m, config.block_n
    owned, walked = (n, m) if kind == "columns" else (m, n)
    threads = config.num_warps * target.warp_size
    match family:
        case "wgmma" if config.chunk:
            share = 1 / 4
        case "wgmma" if owned == 16:
            # Single warps multiply, which share the other side of a tile.
            share = 1 / 4
        case "wgmma":
            # A warp has 16 rows of the tile; those that are too many repeat what others do, but a second warp group
            # that has nothing to load, of heads that are not wide, shares the rows of the first.
            shares = owned >= 64 and max(d, v) <= 128 and config.descriptors
            share, threads = 1 / 4, min(threads, (4 if shares else 2) * owned)
        case "tcgen05":
            share = 1 / 4 if owned <= 64 else 128 / threads
        case "mma" if kind == "columns":
            share = 1 / 16
        case "mma":
            share = 1 / 4 if owned >= 16 * config.num_warps else 1 / 8
        case _:
            share = 1 / 4
    tile = m * n / threads
    used = _USED[family][_KINDS.index(kind)]
    taken = used * extra.across * walked * share
    taken += (8 + _STAGED.get(family, 4) * extra.across) * max(config.num_stages - 2, 0)
    pairs = _PAIRS.get(family, (1.0, 1.0, 1.0))[_KINDS.index(kind)] * extra.pairs
    pairs += _TURNED.get(family, (0.0, 0.0))[config.num_stages == 1] if extra.turned else 0.0
    pairs += _COMMON.get(family, (0.0, 0.0, 0.0))[_KINDS.index(kind)] * extra.common
    taken += (_HELD[family][_KINDS.index(kind)] * extra.tiles + pairs) * tile
    taken += _DOWN[family] * extra.down
    if kind == "forward":
        sums = extra.accumulators + _MORE_SUMS.get(family, 0.0) * (extra.accumulators - 1)
        return m * sums * v / threads + 1.5 * tile + taken
    return (m * d if kind == "rows" else n * (d + v)) / threads + 2 * tile + taken


def _feature_registers(
    config: Config, target: Target, value_dim: int, extra: Extra, family: Family
) -> float:
    """Registers a thread spends on the value features of its rows ahead of the walks or after them."""
    tile = config.block_m * padded_dim(value_dim) / (config.num_warps * target.warp_size)
    return extra.features * tile + _DOWN[family] * extra.down


def _features_room(target: Target) -> int:
    return _FEATURE_REGISTERS if target.is_nvidia else 2 * _FEATURE_REGISTERS


def _family(target: Target, dtype: str) -> Family:
    """Who multiplies: on NVIDIA, float32 in full precision is left to ordinary multiply-adds."""
    if not target.is_nvidia:
        return "mfma_float32" if dtype == "float32" else "mfma"
    if dtype == "float32":
        return "fma"
    return {"sm_90": "wgmma", "sm_100": "tcgen05"}.get(target.name, "mma")  # type: ignore[return-value]
