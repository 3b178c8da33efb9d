"""A tile map: which tiles of a grid of pairs are empty, partly allowed or full, for given lengths."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

EMPTY, PARTIAL, FULL = 0, 1, 2


@dataclass(frozen=True)
class TileMap:
    """The tiles of one mask for M queries and N keys.

    ``states`` is int8 ``[1 or B, 1 or H, rows, columns]`` of EMPTY, PARTIAL and FULL; an axis of extent 1 says that all
    batches (heads) are alike. Tile (i, j) holds queries ``i * tile[0] ...`` of the call, whose positions start at
    ``q_start``, and keys ``j * tile[1] ...``; the last ones may be cut off by ``lengths``. ``allowed`` is int64
    ``[1 or B, 1 or H]``: how many pairs the mask allows. The map is exact: an EMPTY tile holds no allowed pair, a FULL
    one no forbidden pair, a PARTIAL one both.
    """

    name: str
    states: Tensor
    lengths: tuple[int, int]
    tile: tuple[int, int]
    allowed: Tensor
    q_start: int = 0
