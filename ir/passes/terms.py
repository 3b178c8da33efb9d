"""Terms ``coefficient * body`` of a formula of one key, and sums as lists of signed addends."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from attncompiler.ir.expr import Call, Const, Expr, stats_in
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.streaming import finite_or_zero

ONE, ZERO = Const(1.0), Const(0.0)


@dataclass(frozen=True, slots=True)
class Term:
    """``above / below * body``: products of row-only factors, and what varies with the key.

    ``selected`` says that the body is 0 outside a class of keys. A row without a key of that class may have
    a coefficient like 1/0 that the formula never evaluates, so such a coefficient is read as 0 there.
    """

    above: tuple[Expr, ...]
    below: tuple[Expr, ...]
    body: Expr
    selected: bool = False

    @property
    def coefficient(self) -> Expr:
        """The row-only factor as one expression, guarded where the term is selected."""
        value = self.plain_coefficient
        return finite_or_zero(value) if self.selected and stats_in(value) else value

    @property
    def plain_coefficient(self) -> Expr:
        """``above / below`` as it stands."""
        return quotient(product(self.above), product(self.below))

    def same_factors(self, other: Term) -> bool:
        """Whether two terms have the same coefficient, factor by factor."""
        return not any(self.beyond(other)) and not any(other.beyond(self))

    def beyond(self, other: Term) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:
        """The factors above and below that the other term does not have, counted as often as they occur."""
        above, below = Counter(self.above), Counter(self.below)
        above.subtract(Counter(other.above))
        below.subtract(Counter(other.below))
        return tuple((+above).elements()), tuple((+below).elements())

    def shared(self, other: Term) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:
        """The factors above and below that both terms have."""
        above = Counter(self.above) & Counter(other.above)
        below = Counter(self.below) & Counter(other.below)
        return tuple(above.elements()), tuple(below.elements())


def product(factors: tuple[Expr, ...]) -> Expr:
    """The product of factors; 1.0 for none."""
    result: Expr = ONE
    for factor in factors:
        result = factor if result is ONE else make("mul", result, factor)
    return result


def quotient(above: Expr, below: Expr) -> Expr:
    """``above / below``, without a division by 1.0."""
    return above if below is ONE else make("div", above, below)


def whole(expr: Expr) -> Term:
    """A formula as a term of its own, with nothing taken out."""
    return Term((), (), expr)


def row_term(expr: Expr) -> Term:
    """A row-only formula as the coefficient of the body 1.0."""
    match expr:
        case Call("div", (x, y)):
            top, bottom = row_term(x), row_term(y)
            return Term(top.above + bottom.below, top.below + bottom.above, ONE)
        case Call("mul", (x, y)):
            left, right = row_term(x), row_term(y)
            return Term(left.above + right.above, left.below + right.below, ONE)
        case _ if expr is ONE:
            return Term((), (), ONE)
        case _:
            return Term((expr,), (), ONE)


def body_product(x: Expr, y: Expr) -> Expr:
    """``x * y``, without a multiplication by 1.0."""
    if x is ONE:
        return y
    return x if y is ONE else make("mul", x, y)


def addends(expr: Expr, sign: int = 1) -> list[tuple[int, Expr]]:
    """The signed terms of a sum, from left to right."""
    match expr:
        case Call("add", (x, y)):
            return addends(x, sign) + addends(y, sign)
        case Call("sub", (x, y)):
            return addends(x, sign) + addends(y, -sign)
        case Call("neg", (x,)):
            return addends(x, -sign)
        case _:
            return [(sign, expr)]


def total(terms: list[tuple[int, Expr]]) -> Expr:
    """The sum of signed terms, grouped from the left; 0.0 for none."""
    result: Expr | None = None
    for sign, term in terms:
        if result is None:
            result = term if sign > 0 else make("neg", term)
        else:
            result = make("add" if sign > 0 else "sub", result, term)
    return ZERO if result is None else result


def merged(terms: list[Term]) -> list[Term]:
    """One term a distinct body."""
    found: dict[Expr, Term] = {}
    for t in terms:
        other = found.get(t.body)
        if other is None:
            found[t.body] = t
        else:
            found[t.body] = _same_body(other, t)
    return list(found.values())


def _same_body(a: Term, b: Term) -> Term:
    """c x + d x with what c and d share kept as factors, so that the term still joins with its like."""
    if a.selected or b.selected:
        return Term((make("add", a.coefficient, b.coefficient),), (), a.body)
    above, below = a.shared(b)
    rests = (Term(*a.beyond(b), ONE).coefficient, Term(*b.beyond(a), ONE).coefficient)
    return Term((*above, make("add", *rests)), below, a.body)
