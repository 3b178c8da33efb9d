"""Turns a formula of one key into terms ``coefficient * body`` whose coefficients are the same for every key.

Example: ``al * exp(s - m) / l + be`` becomes ``(al / l) * exp(s - m)`` and ``be * 1``: the sum over the keys
moves inside the coefficients. A factor chosen by a class of the key, ``where(is_sink[k], a, b) * g``, becomes
``a * where(is_sink[k], g, 0)`` and ``b * where(is_sink[k], 0, g)``.

Bodies are the user's own nodes wherever nothing was taken out of them, so that a sum over the same body and
an accumulator share it.
"""

from __future__ import annotations

from attncompiler.ir.expr import Call, Const, Expr, is_row_only, stats_in, substitute, walk
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.passes.terms import (
    ONE,
    ZERO,
    Term,
    addends,
    body_product,
    merged,
    quotient,
    row_term,
    total,
    whole,
)
from attncompiler.ir.signs import nonnegative

_MOST_TERMS = 8


def split(expr: Expr, *, distribute: bool, positive: frozenset[str] = frozenset()) -> list[Term]:
    """The terms of a formula; none for 0.

    Without ``distribute`` sums stay whole and there is at most one term. With it sums and classes become
    several terms wherever they read statistics. ``positive`` names statistics that are never negative:
    what may leave a maximum, a root or a sign.
    """
    terms = _Splitter(distribute, positive).terms(expr)
    return [t for t in terms if t.body is not ZERO and ZERO not in t.above]


class _Splitter:
    def __init__(self, distribute: bool, positive: frozenset[str]) -> None:
        self.distribute, self.positive = distribute, positive
        self._memo: dict[Expr, list[Term]] = {}

    def terms(self, expr: Expr) -> list[Term]:
        if expr not in self._memo:
            self._memo[expr] = self._terms(expr)
        return self._memo[expr]

    def _terms(self, expr: Expr) -> list[Term]:
        if expr is ZERO:
            return []
        if expr is ONE:
            return [Term((), (), ONE)]
        if is_row_only(expr):
            return [row_term(expr)]
        match expr:
            case Call("mul", (x, y)):
                found = self._times(expr, self.terms(x), self.terms(y))
            case Call("div", (x, y)):
                found = self._over(expr, self.terms(x), self.terms(y))
            case Call("neg", (x,)):
                found = [
                    Term((*t.above, Const(-1.0)), t.below, t.body, t.selected)
                    for t in self.terms(x)
                ]
            case Call("add" | "sub" as op, (x, y)) if stats_in(expr):
                found = self._plus(expr, op, self.terms(x), self.terms(y))
            case Call("where", (c, x, y)):
                found = self._select(expr, c, self.terms(x), self.terms(y))
            case Call("abs" | "sign" | "sqrt" | "rsqrt" as op, (x,)):
                found = self._outer(expr, op, self.terms(x))
            case Call("max" | "min" as op, (x, y)):
                found = self._extremum(expr, op, self.terms(x), self.terms(y))
            case Call("exp" | "exp2" as op, (x,)):
                found = _exponential(expr, op, x)
            case _:
                found = [whole(expr)]
        if self.distribute and len(found) == 1 and found[0].body is expr:
            found = self._lifted(expr)
        return merged(found)

    def _times(self, expr: Expr, left: list[Term], right: list[Term]) -> list[Term]:
        if not self._fits(left, right):
            return [whole(expr)]
        return [
            Term(
                a.above + b.above,
                a.below + b.below,
                body_product(a.body, b.body),
                a.selected or b.selected,
            )
            for a in left
            for b in right
        ]

    def _over(self, expr: Expr, left: list[Term], right: list[Term]) -> list[Term]:
        if len(right) != 1:
            return [whole(expr)]
        (b,) = right
        return [
            Term(
                a.above + b.below,
                a.below + b.above,
                quotient(a.body, b.body),
                a.selected or b.selected,
            )
            for a in left
        ]

    def _fits(self, left: list[Term], right: list[Term]) -> bool:
        return len(left) * len(right) <= (_MOST_TERMS if self.distribute else 1)

    def _plus(self, expr: Expr, op: str, left: list[Term], right: list[Term]) -> list[Term]:
        if len(left) == len(right) == 1 and left[0].same_factors(right[0]):
            (a,), (b,) = left, right
            return [Term(a.above, a.below, make(op, a.body, b.body), a.selected and b.selected)]
        if not self.distribute:
            return [whole(expr)]
        if op == "sub":
            right = [Term((*t.above, Const(-1.0)), t.below, t.body, t.selected) for t in right]
        return left + right

    def _select(self, expr: Expr, c: Expr, left: list[Term], right: list[Term]) -> list[Term]:
        if is_row_only(c):
            inner = self._class_inside(expr)
            if inner is not None:
                return self.terms(inner)
            if not self._fits(left, right) or not (left or right):
                return [whole(expr)]
            chosen = [Term((make("where", c, t.coefficient, ZERO),), (), t.body) for t in left]
            return chosen + [
                Term((make("where", c, ZERO, t.coefficient),), (), t.body) for t in right
            ]
        if len(left) == len(right) == 1 and left[0].same_factors(right[0]):
            (a,), (b,) = left, right
            if not self.distribute or stats_in(a.body) == stats_in(b.body):
                return [Term(a.above, a.below, make("where", c, a.body, b.body))]
        if len(left) + len(right) > (_MOST_TERMS if self.distribute else 1):
            return [whole(expr)]
        inside = [Term(t.above, t.below, make("where", c, t.body, ZERO), True) for t in left]
        return inside + [
            Term(t.above, t.below, make("where", c, ZERO, t.body), True) for t in right
        ]

    def _class_inside(self, expr: Expr) -> Expr | None:
        """where(row, where(key, x, y), z) as where(key, where(row, x, z), where(row, y, z)), or None.

        With the class of the key outermost, x and z share an accumulator where only their coefficients differ.
        """
        match expr:
            case Call("where", (row, Call("where", (key, x, y)), z)) if not is_row_only(key):
                sides = make("where", row, x, z), make("where", row, y, z)
            case Call("where", (row, z, Call("where", (key, x, y)))) if not is_row_only(key):
                sides = make("where", row, z, x), make("where", row, z, y)
            case _:
                return None
        return make("where", key, *sides) if self.distribute and not stats_in(key) else None

    def _outer(self, expr: Expr, op: str, inner: list[Term]) -> list[Term]:
        if len(inner) != 1:
            return [whole(expr)]
        (t,) = inner
        if t.selected or not (op == "abs" or self._positive(t)):
            return [whole(expr)]
        match op:
            case "sign":
                return [Term((), (), make("sign", t.body))]
            case "rsqrt":
                above, below = t.below, t.above
                outer = tuple(make("sqrt", f) for f in above), tuple(make("sqrt", f) for f in below)
            case _:
                outer = tuple(make(op, f) for f in t.above), tuple(make(op, f) for f in t.below)
        return [Term(*outer, make(op, t.body))]

    def _extremum(self, expr: Expr, op: str, left: list[Term], right: list[Term]) -> list[Term]:
        """max(c x, c y) = c max(x, y) for c >= 0; a side that is 0 goes with any c."""
        if max(len(left), len(right)) != 1:
            return [whole(expr)]
        t = (left or right)[0]
        if left and right and not left[0].same_factors(right[0]):
            return [whole(expr)]
        if t.selected or not self._positive(t):
            return [whole(expr)]
        bodies = (side[0].body if side else ZERO for side in (left, right))
        return [Term(t.above, t.below, make(op, *bodies))]

    def _positive(self, term: Term) -> bool:
        return all(nonnegative(f, self.positive) for f in (*term.above, *term.below))

    def _lifted(self, expr: Expr) -> list[Term]:
        """f(where(c, x, y)) = where(c, f(x), f(y)) for a class c of keys whose branches read statistics."""
        for node in walk(expr):
            match node:
                case Call("where", (c, x, y)) if (
                    node is not expr
                    and not is_row_only(c)
                    and not stats_in(c)
                    and stats_in(x) != stats_in(y)
                ):
                    sides = [self.terms(substitute(expr, {node: side})) for side in (x, y)]
                    return self._select(expr, c, *sides)
        return [whole(expr)]


def _exponential(expr: Expr, op: str, exponent: Expr) -> list[Term]:
    """exp(x - log(l)) = exp(x) / l: a sum l leaves the exponent, where it would have to be known first."""
    log = "log" if op == "exp" else "log2"
    rest: list[tuple[int, Expr]] = []
    above: list[Expr] = []
    below: list[Expr] = []
    for sign, term in addends(exponent):
        match term:
            case Call(name, (y,)) if name == log and is_row_only(term):
                (above if sign > 0 else below).append(y)
            case _:
                rest.append((sign, term))
    if not above and not below:
        return [whole(expr)]
    return [Term(tuple(above), tuple(below), make(op, total(rest)))]
