"""Turns a mask into the runs of full and of partial tiles along a walk, as few comparisons of positions.

A walk goes over the keys of a block of queries, or over the queries of a block of keys. Its tiles are visited where a
span of allowed positions meets them, and full where no span of forbidden positions does: the spans of the opposite
mask. Between two neighbouring ends of spans all tiles are alike, so a kernel finds a whole run at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from attncompiler.ir.expr import Expr
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.spans import Span
from attncompiler.ir.tiles import negation, tile_set

Side = Literal["keys", "queries"]


@dataclass(frozen=True, slots=True)
class TileRuns:
    """``allowed``: positions that some pair of the block allows; ``forbidden``: that some pair forbids.

    All spans are solid and hold as long as ``small`` does. No ``forbidden`` span: every tile is full.
    """

    allowed: tuple[Span, ...]
    forbidden: tuple[Span, ...]
    small: Expr

    def mapped(self, rule: Callable[[Expr], Expr]) -> TileRuns:
        """The runs with each formula rewritten."""
        allowed, forbidden = (
            tuple(s.mapped(rule) for s in spans) for spans in (self.allowed, self.forbidden)
        )
        return TileRuns(allowed, forbidden, rule(self.small))


def tile_runs(mask: Expr, side: Side) -> TileRuns | None:
    """The runs along the keys of a block of queries, or the other way round; None where they are not known.

    That is so for masks that read tensors of positions, and for those whose positions have holes (strides), where most
    tiles of a run would be visited in vain.
    """
    seen, unseen = tile_set(mask), tile_set(negation(mask))
    allowed = seen.keys if side == "keys" else seen.queries
    forbidden = unseen.keys if side == "keys" else unseen.queries
    if not allowed or forbidden is None:  # where nothing is allowed at all, there is no walk
        return None
    if not all(s.solid and s.step == 1 for s in allowed):
        return None
    return TileRuns(allowed, forbidden, make("and", seen.small, unseen.small))
