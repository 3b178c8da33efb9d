"""A tile map: which tiles of a grid of pairs are empty, partly allowed or full, for given lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

EMPTY, PARTIAL, FULL = 0, 1, 2
CHARACTERS = ".+#"


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

    @classmethod
    def of_pairs(
        cls, name: str, allowed: Tensor, tile: tuple[int, int], q_start: int = 0
    ) -> TileMap:
        """The map of a mask given pair by pair: ``allowed`` is bool ``[1 or B, 1 or H, M, N]``."""
        queries, keys = allowed.shape[-2:]
        states = torch.where(allowed, FULL, EMPTY).to(torch.int8)
        count = allowed.sum((-2, -1))
        return cls(name, states, (queries, keys), (1, 1), count, q_start).merged(tile)

    @property
    def counts(self) -> dict[int, int]:
        """How many tiles of each state there are, over all batches and heads of the map."""
        return {state: int((self.states == state).sum()) for state in (EMPTY, PARTIAL, FULL)}

    @property
    def pairs(self) -> int:
        """M * N."""
        return self.lengths[0] * self.lengths[1]

    @property
    def visited(self) -> Tensor:
        """int64 ``[1 or B, 1 or H]``: the pairs of tiles that are not empty; a cut tile counts what it holds."""
        return self._pairs_where(self.states != EMPTY)

    @property
    def masked(self) -> Tensor:
        """int64 ``[1 or B, 1 or H]``: the pairs of partial tiles, which need the mask's own test."""
        return self._pairs_where(self.states == PARTIAL)

    @property
    def work(self) -> float:
        """Visited over all pairs."""
        return self._share(self.visited)

    @property
    def density(self) -> float:
        """Allowed over all pairs."""
        return self._share(self.allowed)

    @property
    def speedup_bound(self) -> float:
        """All over allowed pairs: no tiling, and no kernel that skips forbidden pairs only, can beat it."""
        return 1 / self.density if self.density else float("inf")

    @property
    def tiling_speedup(self) -> float:
        """All over visited pairs: what skipping the empty tiles of this shape can gain."""
        return 1 / self.work if self.work else float("inf")

    def one(self, batch: int = 0, head: int = 0) -> TileMap:
        """The map of one batch and head, ``states`` ``[1, 1, rows, columns]``; raises IndexError if there is none."""

        def chosen(x: Tensor) -> Tensor:
            for axis, index in enumerate((batch, head)):
                # An axis of extent 1 stands for every batch (head).
                x = x if x.shape[axis] == 1 else x.select(axis, index).unsqueeze(axis)
            return x

        return replace(self, states=chosen(self.states), allowed=chosen(self.allowed))

    def merged(self, tile: tuple[int, int]) -> TileMap:
        """The exact map of larger tiles; raises ValueError unless they are made of whole tiles of this map."""
        rows, columns = (new // old for new, old in zip(tile, self.tile, strict=True))
        if not rows * columns or (rows * self.tile[0], columns * self.tile[1]) != tuple(tile):
            raise ValueError(f"tiles of {tile} are not made of tiles of {self.tile}")
        if (rows, columns) == (1, 1):
            return self
        # Beyond the edge there is no pair, which neither end of the comparison may notice.
        lowest = _blocks(self.states, rows, columns, fill=FULL).amin((-3, -1))
        highest = _blocks(self.states, rows, columns, fill=EMPTY).amax((-3, -1))
        states = torch.where(lowest == highest, lowest, PARTIAL).to(torch.int8)
        return replace(self, states=states, tile=(tile[0], tile[1]))

    def text(self, columns: int = 64, *, batch: int = 0, head: int = 0) -> str:
        """A drawing of one head, at most ``columns`` wide and half as high.

        ``.`` is an empty tile, ``+`` a partial one, ``#`` a full one. Where there are too many tiles, a character
        stands for several: ``+`` unless they are all empty or all full.
        """
        limits = max(1, columns // 2), max(1, columns)
        shape = self.states.shape[-2:]
        high, wide = (max(1, -(-n // limit)) for n, limit in zip(shape, limits, strict=True))
        drawn = self.one(batch, head).merged((high * self.tile[0], wide * self.tile[1]))
        first = [str(self.q_start + drawn.tile[0] * i) for i in range(drawn.states.shape[-2])]
        width = max(map(len, ("query", *first)))
        lines = [
            f"{'query':>{width}}  keys 0 to {self.lengths[1] - 1}, {drawn.tile[1]} a character"
        ]
        for label, row in zip(first, drawn.states[0, 0].tolist(), strict=True):
            lines.append(f"{label:>{width}}  {''.join(CHARACTERS[state] for state in row)}")
        return "\n".join(lines)

    def _pairs_where(self, chosen: Tensor) -> Tensor:
        """How many pairs the chosen tiles hold, by batch and head."""
        rows, columns = (
            _extents(length, tile) for length, tile in zip(self.lengths, self.tile, strict=True)
        )
        return (chosen * rows[:, None] * columns).sum((-2, -1))

    def _share(self, count: Tensor) -> float:
        whole = self.pairs * count.numel()
        return int(count.sum()) / whole if whole else 0.0


def _extents(length: int, tile: int) -> Tensor:
    """How many of ``length`` positions each tile holds: the last one may be cut."""
    return (length - torch.arange(0, length, tile)).clamp(max=tile)


def _blocks(states: Tensor, rows: int, columns: int, *, fill: int) -> Tensor:
    """``[b, h, blocks, rows, blocks, columns]``, padded with ``fill``."""
    high, wide = states.shape[-2:]
    rows, columns = min(rows, max(high, 1)), min(columns, max(wide, 1))
    padding = (0, -wide % columns, 0, -high % rows)
    padded = torch.nn.functional.pad(states, padding, value=fill)
    shape = (-(-high // rows), rows, -(-wide // columns), columns)
    return padded.reshape(*states.shape[:2], *shape)
