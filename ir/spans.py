"""Turns the set of positions that a tile's other side may meet into ranges whose ends are formulas.

For queries q_lo..q_hi of a causal window these are the keys ``[max(q_lo - w + 1, 0), q_hi + 1)``, if ``w > 0``. The
ends of a range read corners of one axis and what is uniform, so a kernel computes them once a row block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attncompiler.ir.expr import Const, Expr, Param, Size
from attncompiler.ir.integer_sets import LIMIT, RefusalError
from attncompiler.ir.linear import Linear, linear, to_expression
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.set_formulas import choice, conditions, end, formula, least, rows

if TYPE_CHECKING:
    import islpy

MOST_SPANS, _MOST_CASES = 4, 4
_LIMITS: dict[str, Expr] = {
    "q": make("add", Param("q_start", "int"), Size("M")),
    "k": Size("N"),
}


@dataclass(frozen=True, slots=True)
class Span:
    """Positions ``lo, lo + step, ...`` below ``end``, provided that ``when`` holds and ``lo < end``.

    ``lo`` and the last position are then met by some pair of the tile; all are when the span is ``solid``. Ends may lie
    beyond the lengths of the call.
    """

    lo: Expr
    end: Expr
    step: int
    solid: bool
    when: Expr

    def formulas(self) -> tuple[Expr, Expr, Expr]:
        """Everything that is computed at run time."""
        return self.when, self.lo, self.end

    def mapped(self, rule: Callable[[Expr], Expr]) -> Span:
        """The span with each formula rewritten."""
        when, lo, end = map(rule, self.formulas())
        return replace(self, when=when, lo=lo, end=end)

    def scaled(self, size: int) -> Span:
        """The positions of blocks, given the span of the blocks themselves."""
        if size == 1:
            return self
        lo, end = (e if e in _LIMITS.values() else _times(e, size) for e in (self.lo, self.end))
        return Span(lo, end, 1, self.solid and self.step == 1, self.when)


def _times(expr: Expr, size: int) -> Expr:
    return to_expression(Linear({}).plus(linear(expr), size))


def spans(of: islpy.Set, context: islpy.Set, names: Sequence[Expr], axis: str) -> tuple[Span, ...]:
    """The ranges of a set of positions along an axis; a refusal when there are many.

    ``context`` says what holds for the parameters anyway, ``names`` are their formulas.
    """
    pieces = of.get_basic_sets()
    if len(pieces) > MOST_SPANS:
        raise RefusalError(f"they fall into {len(pieces)} ranges")
    found = (_span(piece, context, names, _LIMITS[axis]) for piece in pieces)
    return tuple(sorted(found, key=lambda s: s.lo is not Const(0)))


def _span(piece: islpy.BasicSet, context: islpy.Set, names: Sequence[Expr], last: Expr) -> Span:
    found = rows(piece, names)
    if any(r.hidden or (r.equal and abs(r.axis) > 1) for r in found):
        return _solved(piece.to_set(), context, names, last)
    when = conditions(r for r in found if not r.axis)
    return Span(least(found) or Const(0), end(found) or last, 1, True, when)


def _solved(piece: islpy.Set, context: islpy.Set, names: Sequence[Expr], last: Expr) -> Span:
    """The range of positions that are constrained by quotients of themselves."""
    import islpy

    step = piece.get_stride_info(0).get_stride().to_python()
    first = piece.dim_min(0)
    inside = islpy.Set.universe(piece.get_space()).intersect_params(piece.params())
    far = islpy.Val.int_from_si(piece.get_ctx(), 2 * LIMIT)
    bounded = (
        (piece.intersect_params(context)).lower_bound_val(islpy.dim_type.set, 0, far).is_empty()
    )
    stop = last
    if bounded:
        final = piece.dim_max(0)
        inside = inside.upper_bound_multi_pw_aff(islpy.MultiPwAff.from_pw_aff(final))
        stop = make("add", _cases(final, context, names), Const(1))
    inside = inside.lower_bound_multi_pw_aff(islpy.MultiPwAff.from_pw_aff(first))
    if step > 1:
        inside = inside & _strided(piece, step)
    solid = inside.is_subset(piece)
    if not bounded and not solid:
        raise RefusalError("they have holes and no end")
    when = formula(piece.params().compute_divs().coalesce().gist(context), names)
    return Span(_cases(first, context, names), stop, step if solid else 1, solid, when)


def _strided(piece: islpy.Set, step: int) -> islpy.Set:
    """The positions that leave the remainder of the set's own."""
    import islpy

    offset = piece.get_stride_info(0).get_offset()
    local = islpy.LocalSpace.from_space(piece.get_space())
    position = islpy.Aff.var_on_domain(local, islpy.dim_type.set, 0)
    size = islpy.Val.int_from_si(piece.get_ctx(), step)
    return position.sub(offset).mod_val(size).zero_basic_set().to_set()


def _cases(value: islpy.PwAff, context: islpy.Set, names: Sequence[Expr]) -> Expr:
    simple = value.gist(value.domain()).coalesce() if value.n_piece() == 1 else value.coalesce()
    if simple.n_piece() > _MOST_CASES:
        raise RefusalError("their ends have too many cases")
    return choice(simple.gist(context), names)
