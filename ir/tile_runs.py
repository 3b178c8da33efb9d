"""Turns a mask into the runs of full and of partial tiles along a walk, as few comparisons of positions.

A walk goes over the keys of a block of queries, or over the queries of a block of keys. Its tiles are visited where a
span of allowed positions meets them, and full where no span of forbidden positions does: the spans of the opposite
mask. Between two neighbouring ends of spans all tiles are alike, so a kernel finds a whole run at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from attncompiler.ir.expr import Expr, Load, walk
from attncompiler.ir.spans import Span
from attncompiler.ir.tiles import negation, tile_set

Side = Literal["keys", "queries"]


@dataclass(frozen=True, slots=True)
class TileRuns:
    """``allowed``: positions that some pair of the block allows; ``forbidden``: that some pair forbids.

    All spans are solid and hold while no number of the call is astronomical. No ``forbidden`` span: every tile is full.
    """

    allowed: tuple[Span, ...]
    forbidden: tuple[Span, ...]

    def mapped(self, rule: Callable[[Expr], Expr]) -> TileRuns:
        """The runs with each formula rewritten."""
        allowed, forbidden = (
            tuple(s.mapped(rule) for s in spans) for spans in (self.allowed, self.forbidden)
        )
        return TileRuns(allowed, forbidden)


def tile_runs(mask: Expr, side: Side) -> TileRuns | None:
    """The runs along the keys of a block of queries, or the other way round; None where they are not known.

    That is so for masks that read tensors of positions, and for those whose positions have holes (strides), where most
    tiles of a run would be visited in vain. Runs are known for both walks or for none.
    """
    found = _both(mask)
    return None if found is None else found[side == "queries"]


@lru_cache(maxsize=256)
def _both(mask: Expr) -> tuple[TileRuns, TileRuns] | None:
    """The runs along the keys and along the queries."""
    seen, unseen = tile_set(mask), tile_set(negation(mask))
    if any(isinstance(n, Load) for n in walk(seen.small, unseen.small)):
        return None  # whoever launches knows the numbers of a call, not what tensors hold
    keys, queries = _runs(seen.keys, unseen.keys), _runs(seen.queries, unseen.queries)
    return None if keys is None or queries is None else (keys, queries)


def _runs(allowed: tuple[Span, ...] | None, forbidden: tuple[Span, ...] | None) -> TileRuns | None:
    if not allowed or forbidden is None:  # where nothing is allowed at all, there is no walk
        return None
    if not all(s.solid and s.step == 1 for s in allowed):
        return None
    return TileRuns(allowed, forbidden)
