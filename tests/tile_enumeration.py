"""Every pair of a mask, for tests of what is said about its tiles and spans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attncompiler.ir.expr import Expr, Index, Param, Size
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.spans import Span
from attncompiler.ir.tiles import CORNERS, TileSet, tile_set

Numbers = dict[str, int | bool]


@dataclass(frozen=True)
class Pairs:
    """Which pairs of M queries from ``q_start`` on and N keys a mask allows."""

    mask: Expr
    lengths: tuple[int, int]
    q_start: int
    numbers: Numbers

    @property
    def known(self) -> TileSet:
        return tile_set(self.mask)

    @property
    def small(self) -> bool:
        return bool(evaluate(self.known.small, self.uniform))

    @property
    def uniform(self) -> dict[Expr, Tensor]:
        leaves: dict[Expr, Tensor] = {Param("q_start", "int"): torch.tensor(self.q_start)}
        for name, value in self.numbers.items():
            kind = "bool" if isinstance(value, bool) else "int"
            leaves[Param(name, kind)] = torch.tensor(value)  # type: ignore[arg-type]
        m, n = self.lengths
        return leaves | {Size("M"): torch.tensor(m), Size("N"): torch.tensor(n)}

    def allowed(self) -> Tensor:
        m, n = self.lengths
        leaves = self.uniform | {
            Index("q"): torch.arange(m)[:, None] + self.q_start,
            Index("k"): torch.arange(n)[None, :],
        }
        return evaluate(self.mask, leaves).expand(m, n)

    def corners(self, axis: Literal["q", "k"], size: int) -> dict[Expr, Tensor]:
        start, extent = (self.q_start, self.lengths[0]) if axis == "q" else (0, self.lengths[1])
        lo = torch.arange(0, extent, size)
        return dict(
            zip(CORNERS[axis], (lo + start, (lo + size).clamp(max=extent) - 1 + start), strict=True)
        )

    def check_tiles(self, rows: int, columns: int) -> tuple[int, int]:
        """How many empty and full tiles are not recognised; fails when a condition is wrong."""
        leaves = self.uniform | self.corners("k", columns)
        leaves |= {c: x[:, None] for c, x in self.corners("q", rows).items()}
        some = _tiles(self.allowed(), rows, columns, False)
        every = ~_tiles(~self.allowed(), rows, columns, False)
        possible = evaluate(self.known.possible, leaves).expand_as(some)
        certain = evaluate(self.known.certain, leaves).expand_as(every)
        assert not (some & ~possible).any(), "a tile with pairs is skipped"
        assert not (certain & ~every).any(), "a tile with holes is not masked"
        return int((possible & ~some).sum()), int((every & ~certain).sum())

    def check_spans(self, axis: Literal["q", "k"], size: int) -> None:
        """Compare spans along an axis with the positions that tiles of the other one meet."""
        spans = self.known.keys if axis == "k" else self.known.queries
        other: Literal["q", "k"] = "q" if axis == "k" else "k"
        if spans is None or not self.small:
            return
        allowed = self.allowed() if axis == "k" else self.allowed().T
        met = _tiles(allowed, size, 1, False)
        start = 0 if axis == "k" else self.q_start
        positions = torch.arange(met.shape[1]) + start
        leaves = self.uniform | self.corners(other, size)
        covered = torch.zeros_like(met)
        for span in spans:
            inside, first, last = _inside(span, leaves, positions, len(met))
            covered |= inside
            assert not (span.solid and (inside & ~met).any()), "a solid span has a hole"
            for end in (first, last):
                within = (end >= start) & (end < start + met.shape[1])
                at = (end - start).clamp(0, met.shape[1] - 1)
                hit = met.gather(1, at[:, None])[:, 0]
                assert (hit | ~within).all(), "an end of a span is not allowed"
        assert not (met & ~covered).any(), "spans miss a position"


def _inside(
    span: Span, leaves: dict[Expr, Tensor], positions: Tensor, tiles: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which positions of each tile a span has, and the first and the last one; -1 when it is empty."""
    when, lo, end = (evaluate(e, leaves).expand(tiles) for e in span.formulas())
    exists = when & (lo < end)
    steps = (positions - lo[:, None]) % span.step == 0
    inside = (positions >= lo[:, None]) & (positions < end[:, None]) & steps & exists[:, None]
    last = lo + (end - 1 - lo) // span.step * span.step
    return inside, torch.where(exists, lo, -1), torch.where(exists, last, -1)


def _tiles(allowed: Tensor, rows: int, columns: int, beyond: bool) -> Tensor:
    """Whether any pair of each tile is allowed; pairs beyond the lengths are as given."""
    m, n = allowed.shape
    padded = torch.nn.functional.pad(allowed, (0, -n % columns, 0, -m % rows), value=beyond)
    split = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    return split.any(3).any(1)
