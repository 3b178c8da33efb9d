"""Turns a mask into two scalar conditions on a tile: may it hold a pair, does it hold all pairs.

A tile is the set of pairs with q in q_lo..q_hi, k in k_lo..k_hi and h in h_lo..h_hi, all
included; the corners are the parameters below, and b and g are the same for the whole tile. A
mask is written as an "or" of "and"s; each "and" is possible unless the ranges of its comparisons
exclude it. A tile is certain when the opposite of the mask is impossible, so both answers come
from one rule, and both err only on the safe side: ``possible`` may be true for a tile without a
pair, ``certain`` false for a full one.

Within an "and", comparisons of one index shrink the box before the others are looked at, and
comparisons of one linear form are intersected. That makes causal, sliding window, sink and
window, prefix and chunked masks exact. Example: ``k <= q and q - k < w`` is possible when ``q_hi
- k_lo >= 0 and q_lo - k_hi < w and 0 < w``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial, reduce
from typing import TYPE_CHECKING

from attncompiler.ir.conjunctions import Conjunction, conjunction
from attncompiler.ir.expr import Call, Const, Expr, Load, Param, kind_of, walk
from attncompiler.ir.intervals import Box, Range
from attncompiler.ir.linear import is_coarse, is_uniform
from attncompiler.ir.passes.canonicalize import make

if TYPE_CHECKING:
    from attncompiler.ir.spans import Span

CORNERS: dict[str, tuple[Param, Param]] = {
    axis: (Param(f"{axis}_lo", "int"), Param(f"{axis}_hi", "int")) for axis in "qkh"
}
_LARGEST_OR = 24
_WIDEST_TILE = 96
_ROUNDS_NOTHING = frozenset({"to_float"})
_NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


@dataclass(frozen=True, slots=True)
class TileClass:
    """``possible``: some pair of the tile may be allowed. ``certain``: all of them are."""

    possible: Expr
    certain: Expr


@dataclass(frozen=True, slots=True)
class TileSet:
    """What is known about the tiles of a mask before any length or value is.

    ``possible`` and ``certain`` as above; ``exact`` says that they are proved to miss no empty and no full tile, for
    all lengths and values, and ``reason`` why they are not. ``keys`` are the keys that the queries q_lo..q_hi of a tile
    may see and ``queries`` the queries that may see the keys k_lo..k_hi, as the union of spans; None where
    ``no_spans`` says why. What is exact and what spans say holds while ``small`` does: no run-time number is
    astronomical.
    """

    possible: Expr
    certain: Expr
    exact: bool
    reason: str = ""
    keys: tuple[Span, ...] | None = None
    queries: tuple[Span, ...] | None = None
    no_spans: str = ""
    small: Expr = field(default_factory=lambda: Const(True))


@lru_cache(maxsize=256)
def tile_set(mask: Expr) -> TileSet:
    """The conditions and spans of a mask, by integer sets where it has them and by intervals elsewhere."""
    from attncompiler.ir.exact_tiles import exact_tiles

    return exact_tiles(mask)


def tile_class(
    mask: Expr,
    corners: Mapping[str, tuple[Param, Param]] = CORNERS,
    values: Mapping[Expr, Range] | None = None,
) -> TileClass:
    """The conditions of a mask (kind bool: indices, parameters, sizes, loads) on the corners, by intervals.

    Loads are unknown unless all their indices are uniform in a tile; then the result reads them. ``values`` are the
    bounds of locals that the mask reads.
    """
    box = Box({axis: Range(lo, hi) for axis, (lo, hi) in corners.items()}, may_be, values or {})
    return TileClass(may_be(mask, True, box), negation(may_be(mask, False, box)))


def needs_plan(mask: Expr) -> bool:
    """Whether tiles of a mask are worth planning: conditions on corners alone are not known to find all that are empty.

    That is a mask that reads tensors of positions, or positions in a way that is not proved exact. A mask that computes
    with floating numbers is not planned: the kernel might round differently.
    """
    nodes = list(walk(mask))
    if any(
        isinstance(n, Call) and kind_of(n) == "float" and n.op not in _ROUNDS_NOTHING for n in nodes
    ):
        return False
    loads = [n for n in nodes if isinstance(n, Load)]
    if loads:
        return any(not all(map(_is_coarse, n.indices)) for n in loads)
    return not tile_set(mask).exact


def _is_coarse(index: Expr) -> bool:
    """Whether a tile of a kernel lies within two values of an index."""
    match index:
        case Call("floordiv", (_, Const(int() as size))) if size < _WIDEST_TILE:
            return is_uniform(index)
        case _:
            return is_coarse(index)


def may_be(condition: Expr, truth: bool, box: Box) -> Expr:
    """Whether a condition can have the given truth value somewhere in the box; sound, see above."""
    terms = _disjunction(condition, truth)
    if terms is not None:
        false: Expr = Const(False)
        return reduce(partial(make, "or"), (conjunction(t, box) for t in terms), false)
    match condition:
        case Call("not", (x,)):
            return may_be(x, not truth, box)
        case Call("and" | "or" as op, (x, y)):
            joined = op if truth else ("or" if op == "and" else "and")
            return make(joined, may_be(x, truth, box), may_be(y, truth, box))
        case Call("where", (c, x, y)):
            first = make("and", may_be(c, True, box), may_be(x, truth, box))
            return make("or", first, make("and", may_be(c, False, box), may_be(y, truth, box)))
        case _:
            return Const(True)


def negation(condition: Expr) -> Expr:
    """The opposite of a condition, pushed down to its comparisons."""
    match condition:
        case Call("and", (x, y)):
            return make("or", negation(x), negation(y))
        case Call("or", (x, y)):
            return make("and", negation(x), negation(y))
        case _:
            return make("not", condition)


def _disjunction(expr: Expr, truth: bool) -> tuple[Conjunction, ...] | None:
    """``expr == truth`` as an or of ands of literals; None when that is too long."""
    if isinstance(expr, Const):
        return ((),) if expr.value == truth else ()
    if is_uniform(expr):
        return (((expr, truth),),)
    match expr:
        case Call("not", (x,)):
            return _disjunction(x, not truth)
        case Call("and" | "or" as op, (x, y)):
            parts = _disjunction(x, truth), _disjunction(y, truth)
            return _product(*parts) if (op == "and") == truth else _union(*parts)
        case Call("where", (c, x, y)):
            return _union(
                _product(_disjunction(c, True), _disjunction(x, truth)),
                _product(_disjunction(c, False), _disjunction(y, truth)),
            )
        case Call("eq" | "ne" as op, (x, y)) if kind_of(x) == "bool":
            same = (op == "eq") == truth
            return _union(
                _product(_disjunction(x, True), _disjunction(y, same)),
                _product(_disjunction(x, False), _disjunction(y, not same)),
            )
        case Call("to_bool", (x,)) if kind_of(x) == "int":
            return _disjunction(make("ne", x, Const(0)), truth)
        case Call(op, (x, y)) if not truth and op in _NEGATED and kind_of(x) == "int":
            return _disjunction(make(_NEGATED[op], x, y), True)
        case _:
            return (((expr, truth),),)


def _union(
    x: tuple[Conjunction, ...] | None, y: tuple[Conjunction, ...] | None
) -> tuple[Conjunction, ...] | None:
    if x is None or y is None or len(x) + len(y) > _LARGEST_OR:
        return None
    return tuple(dict.fromkeys(x + y))


def _product(
    x: tuple[Conjunction, ...] | None, y: tuple[Conjunction, ...] | None
) -> tuple[Conjunction, ...] | None:
    if x is None or y is None or len(x) * len(y) > _LARGEST_OR:
        return None
    return tuple(dict.fromkeys(tuple(dict.fromkeys(a + b)) for a in x for b in y))
