"""Finds sums over the keys among sums that are known, and collects those that need a walk of their own.

Known are the statistics of the forward, sum_k body_k = r, and sum_k dw_k weight_k = <go, o>. A sum over the same body
times other values of the row is the known sum times their quotient; products match in any order of their factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attncompiler.ir.derivatives import ZERO, times
from attncompiler.ir.expr import Call, Expr, Stat, WeightGrad
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.passes.row_values import RowValues, total
from attncompiler.ir.passes.split import split
from attncompiler.ir.passes.terms import Term, product, quotient
from attncompiler.ir.program import Program, Reduction

Key = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Known:
    """A known sum over the keys of a term; without a value it is <go, o>."""

    term: Term
    value: Expr | None


class KeySums:
    """``positive`` names statistics that are never negative; ``delta`` gives <go, o> when it is first needed."""

    def __init__(
        self,
        program: Program,
        rows: RowValues,
        positive: frozenset[str],
        delta: Callable[[], Expr],
    ) -> None:
        self.rows, self.positive, self.delta = rows, positive, delta
        self.used_delta = False
        self.sums: dict[Key, Reduction] = {}
        self.extrema: dict[str, Reduction] = {}
        self._known: dict[Key, _Known] = {}
        self._weighted: dict[Key, _Known] = {}
        for r in program.reductions:
            term = self.single_term(r.body)
            if r.op == "sum" and term is not None:
                self._known[key_of(term.body)] = _Known(term, Stat(r.name))
        term = self.single_term(program.weight)
        if term is not None:
            self._weighted[key_of(term.body)] = _Known(term, None)

    def single_term(self, expr: Expr) -> Term | None:
        """The formula as one coefficient times one body, if it has that form without distributing sums."""
        terms = split(expr, distribute=False, positive=self.positive)
        return terms[0] if len(terms) == 1 else None

    def term(self, expr: Expr) -> Term:
        """The formula as one term, if need be with coefficient 1."""
        return self.single_term(expr) or Term((), (), expr)

    def known(self, slope: Expr, weighted: bool) -> Expr | None:
        """sum_k slope_k (times dw_k where ``weighted``) made of known sums, or None."""
        for distribute in (False, True):
            terms = split(slope, distribute=distribute, positive=self.positive)
            found = [self._known_term(t, weighted) for t in terms]
            values = [value for value in found if value is not None]
            if len(values) == len(terms):
                return total(values) if values else ZERO
        return None

    def _known_term(self, term: Term, weighted: bool) -> Expr | None:
        known = (self._weighted if weighted else self._known).get(key_of(term.body))
        if known is None:
            return None
        # sum of c * b, given sum of d * b: multiply by c / d with what both share cancelled.
        above, below = term.beyond(known.term)
        divisors, factors = known.term.beyond(term)
        if divisors:
            return None  # the weight's own coefficient might be 0
        self.used_delta = self.used_delta or weighted
        value = known.value or self.delta()
        return quotient(product((*above, *factors, value)), product(below))

    def summed(self, slope: Expr, weighted: bool) -> Expr:
        """sum_k slope_k (times dw_k) by a walk over the keys, row factors taken out."""
        term = self.term(slope)
        body = times(term.body, WeightGrad()) if weighted else term.body
        return times(term.coefficient, self.walked("sum", body))

    def walked(self, wish: str, body: Expr) -> Expr:
        """sum_k body_k by a walk over the keys."""
        key = key_of(body)
        if key not in self.sums:
            self.sums[key] = Reduction(self.rows.fresh(f"{wish}_{len(self.sums)}"), "sum", body)
        return Stat(self.sums[key].name)

    def attains(self, r: Reduction) -> Expr:
        """Whether a key attains a maximum or minimum, which is found again so that the values are the same."""
        if r.name not in self.extrema:
            self.extrema[r.name] = Reduction(self.rows.fresh(f"{r.name}_again"), r.op, r.body)
        return make("eq", r.body, Stat(self.extrema[r.name].name))


def key_of(body: Expr) -> Key:
    """The factors above and below the line of a product, in no order: equal for products that differ in order only."""
    above: list[int] = []
    below: list[int] = []
    stack = [(body, above, below)]
    while stack:
        node, up, down = stack.pop()
        match node:
            case Call("mul", (x, y)):
                stack += [(x, up, down), (y, up, down)]
            case Call("div", (x, y)):
                stack += [(x, up, down), (y, down, up)]
            case _:
                up.append(id(node))  # nodes are unique while they live
    return tuple(sorted(above)), tuple(sorted(below))
