"""Turns an architecture, an element type and head dimensions into tile shapes for TileLang's attention kernels.

Found by compiling generated kernels (``tests/test_backends/test_tilelang_offline.py`` compiles some again). Every warp
multiplies at least 16 rows, on Hopper a group of four warps 64. Where these are its own, sums take a register for two
features a thread: too many for wide heads, of which warps that share rows hold some features each (``parted``). Only
Hopper's kernels, whose loads have warps of their own, may keep several tiles in flight.
"""

from __future__ import annotations

from typing import Literal

from attncompiler.backends.gpu_targets import Target
from attncompiler.backends.tile_config import Config, Kind, parted, tilelang_width
from attncompiler.backends.triton_configs import PLAIN
from attncompiler.backends.triton_work import Extra

Family = Literal["wgmma", "mma", "mfma"]
Seeds = tuple[tuple[int, int, int, int], ...]
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_KIB = 1024
# By the larger head dimension: block_m, block_n, warps, stages.
_FORWARD: dict[Family, dict[int, Seeds]] = {
    "wgmma": {
        64: ((128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2)),
        128: ((128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 1)),
        256: ((128, 64, 8, 1), (64, 64, 4, 1), (64, 32, 4, 1)),
        512: ((64, 64, 8, 1), (64, 32, 8, 1)),
    },
    "mma": {
        64: ((128, 64, 8, 1), (128, 32, 8, 1), (64, 64, 4, 1), (64, 32, 4, 1)),
        128: ((128, 64, 8, 1), (128, 32, 8, 1), (64, 32, 4, 1), (64, 16, 4, 1)),
        256: ((128, 32, 8, 1), (64, 32, 4, 1), (64, 16, 4, 1)),
        512: ((64, 32, 8, 1), (32, 32, 4, 1), (32, 16, 4, 1)),
    },
    "mfma": {
        64: ((128, 64, 4, 1), (64, 64, 4, 1), (64, 32, 4, 1)),
        128: ((128, 64, 4, 1), (128, 32, 4, 1), (64, 64, 4, 1), (64, 32, 4, 1)),
        256: ((64, 32, 4, 1), (64, 16, 4, 1)),
        512: ((32, 16, 2, 1), (16, 16, 1, 1)),
    },
}
_ROWS: dict[Family, dict[int, Seeds]] = {
    "wgmma": {
        64: ((128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 2), (64, 32, 4, 1)),
        128: ((128, 64, 8, 2), (128, 64, 8, 1), (64, 64, 4, 1), (64, 32, 4, 1)),
        256: ((64, 64, 4, 1), (64, 32, 4, 1)),
        512: ((64, 32, 8, 1), (64, 16, 8, 1)),
    },
    "mma": {
        64: ((128, 32, 8, 1), (64, 64, 4, 1), (64, 32, 4, 1)),
        128: ((128, 32, 8, 1), (64, 32, 4, 1), (64, 16, 4, 1)),
        256: ((64, 16, 4, 1), (32, 16, 2, 1), (16, 16, 1, 1)),
        512: ((32, 32, 8, 1), (32, 16, 4, 1)),
    },
    "mfma": {
        64: ((64, 64, 4, 1), (64, 32, 4, 1)),
        128: ((64, 64, 4, 1), (64, 32, 4, 1), (64, 16, 4, 1)),
        256: ((32, 16, 2, 1), (16, 16, 1, 1)),
        512: ((16, 16, 1, 1),),
    },
}
_COLUMNS: dict[Family, dict[int, Seeds]] = {
    "wgmma": {
        64: ((64, 128, 8, 1), (64, 128, 8, 2), (64, 64, 4, 1), (32, 64, 4, 1)),
        128: ((64, 128, 8, 1), (64, 64, 4, 1), (32, 64, 4, 1), (16, 64, 4, 1)),
        256: ((64, 64, 8, 1), (32, 64, 8, 1), (16, 64, 8, 1)),
        512: ((32, 32, 8, 1), (32, 16, 4, 1)),
    },
    "mma": {
        64: ((64, 128, 8, 1), (32, 128, 8, 1), (32, 64, 4, 1), (16, 64, 4, 1)),
        128: ((16, 128, 8, 1), (32, 128, 8, 1), (16, 64, 4, 1)),
        256: ((32, 32, 8, 1), (32, 64, 8, 1), (16, 32, 4, 1)),
        512: ((32, 32, 8, 1), (32, 16, 4, 1)),
    },
    "mfma": {
        64: ((64, 64, 4, 1), (32, 64, 4, 1), (16, 64, 4, 1)),
        128: ((32, 64, 4, 1), (16, 64, 4, 1)),
        256: ((16, 32, 2, 1), (16, 16, 1, 1)),
        512: ((16, 16, 1, 1),),
    },
}


def configs(
    kind: Kind, target: Target, dtype: str, head_dim: int, value_dim: int, extra: Extra = PLAIN
) -> tuple[Config, ...]:
    """Shapes for a forward kernel or for a backward one, that owns queries (rows: dq) or keys (columns: dk and dv).

    Best first, never empty: of the list without those that shared memory rules out, or its last one. ``dtype`` is the
    inputs' ("float32", "bfloat16", "float16"); head dimensions are those before padding, 1 to 512. ``extra`` is what
    the kernel keeps beside a plain softmax's tiles: where that is another sum of values, or tiles of pairs that are
    kept, the widest blocks come after the others, before the last.
    """
    table = {"forward": _FORWARD, "rows": _ROWS, "columns": _COLUMNS}[kind][family_of(target)]
    side = max(head_dim, value_dim)
    # TMA wants rows whose bytes 16 divides.
    whole = all(n * _ELEMENT_BYTES[dtype] % 16 == 0 for n in (head_dim, value_dim))
    tma = whole and family_of(target) == "wgmma"
    listed = table[min(n for n in table if n >= min(side, 512))]
    seeds = [Config(*seed, descriptors=tma) for seed in listed]
    fitting = [
        c
        for c in seeds
        if shared_estimate(kind, c, target, dtype, head_dim, value_dim) <= target.shared_per_block
    ]
    if not fitting:
        return (seeds[-1],)
    *others, last = fitting
    if extra.accumulators > 1 or extra.tiles > 0:
        others.sort(key=lambda c: c.block_m * c.block_n > 64 * 128)
    return (*others, last)


def family_of(target: Target) -> Family:
    """Whose matrix instructions: TileLang has none of Blackwell's for these kernels, which gets Ampere's."""
    if not target.is_nvidia:
        return "mfma"
    return "wgmma" if target.name == "sm_90" else "mma"


def shared_estimate(
    kind: Kind, config: Config, target: Target, dtype: str, head_dim: int, value_dim: int
) -> int:
    """Bytes of shared memory that a block takes: tiles, and a KiB for vectors across them and for barriers.

    Warps that share rows get each other's weights from there, and what a row has by two numbers a thread.
    """
    pointers = target.is_nvidia and not config.descriptors
    d, v = (tilelang_width(n, pointers=pointers) for n in (head_dim, value_dim))
    m, n, stages = config.block_m, config.block_n, max(config.num_stages, 1)
    match kind:
        case "forward":
            elements = m * d + stages * n * (d + v)
        case "rows":
            elements = (m + stages * n) * (d + v)
        case "columns":
            elements = (n + stages * m) * (d + v) + m * n
    used = _KIB
    if parted(kind, m, n, config.num_warps):
        elements += m * n
        used += 0 if kind == "columns" else 2 * 4 * 32 * config.num_warps
    return _ELEMENT_BYTES[dtype] * elements + used
