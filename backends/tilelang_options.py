"""Turns the tile shapes of a TileLang kernel into the other ways to run it that tuning tries beside them.

Which of them is faster shows on a device only, so nothing here is tried without timing: the order of blocks, which
decides what lies in the L2 cache and which rows are left for the end; where operands lie; warp groups apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attncompiler.backends.gpu_targets import Target
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.backends.tilelang_configs import family_of

# Heads whose blocks take turns: keys and values of 4 heads of 16384 tokens fit Hopper's L2, those of 16 heads of 4096.
RASTERS = (4, 16)
# Warps that multiply where a warp group loads for them.
_GROUPS = (4, 8, 12)


def options(
    kind: Kind, target: Target, plain: Sequence[Config], *, apart: bool
) -> tuple[Config, ...]:
    """The other ways for the configurations ``plain`` of a target, the best guess first.

    ``apart``: the file has the forward's other schedule, and it holds for the inputs' type. Queries in registers
    are for the instructions of ``mma`` alone: those of Hopper read tiles where TMA puts them.
    """
    first = plain[0]
    found = _rasters(first)
    if kind == "forward" and family_of(target) == "mma":
        found.append(replace(first, held=True))
    if apart and kind == "forward" and family_of(target) == "wgmma":
        fitting = [
            replace(c, apart=True) for c in plain if c.descriptors and c.num_warps in _GROUPS
        ]
        found += [other for c in fitting[:1] for other in (c, *_rasters(c))]
    return (*found, *_rasters(*plain[1:2]))


def _rasters(*configs: Config) -> list[Config]:
    return [replace(c, raster=n) for c in configs for n in RASTERS]
