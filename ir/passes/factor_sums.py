"""Takes row-only factors out of reductions, so that a sum need not wait for statistics it is only scaled by.

Takes any program; leaves one whose reduction bodies carry no factor made of statistics. Example: with
p = exp(s - m) / l, ``mass = sum(where(sink[k], p, 0))`` becomes ``mass_raw = sum(where(sink[k], exp(s - m), 0))``
and every later ``mass`` becomes ``mass_raw / l``; ``top = max(s - mean)`` becomes ``max(s) - mean``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from attncompiler.ir.expr import Const, Expr, Stat, is_row_only, stats_in, substitute
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.passes.rescale import Refused, Rescaler
from attncompiler.ir.passes.split import split
from attncompiler.ir.passes.terms import ZERO, Term, addends, total
from attncompiler.ir.program import Program, Reduction
from attncompiler.ir.signs import nonnegative
from attncompiler.ir.streaming import INFINITY

_MOST_PARTS = 4


def factor_sums(program: Program, rescaler: Rescaler) -> Program:
    """The program with factors moved out of its reductions; the same object when there are none.

    ``rescaler`` learns the statistics on the way. A sum is divided into several only where that lets it
    stream and where no two parts can cancel each other.
    """
    factoring = _Factoring(program, rescaler)
    for reduction in program.reductions:
        factoring.add(reduction)
    if not factoring.renamed:
        return program

    def new(expr: Expr) -> Expr:
        return substitute(expr, factoring.renamed)

    return replace(
        program,
        reductions=tuple(factoring.reductions.values()),
        weight=new(program.weight),
        kept=tuple((name, new(e)) for name, e in program.kept),
        output_reductions=tuple(replace(r, body=new(r.body)) for r in program.output_reductions),
        output=new(program.output),
    )


class _Factoring:
    def __init__(self, program: Program, rescaler: Rescaler) -> None:
        self.rescaler = rescaler
        self.names = {r.name for r in program.reductions} | {name for name, _ in program.kept}
        self.names |= {r.name for r in program.output_reductions}
        self.reductions: dict[tuple[str, Expr], Reduction] = {}
        self.renamed: dict[Expr, Expr] = {}

    def add(self, reduction: Reduction) -> None:
        body = substitute(reduction.body, self.renamed)
        if reduction.op == "sum":
            value = self._sum(reduction.name, body)
        else:
            value = self._extremum(replace(reduction, body=body))
        if value is None:
            self._learn(Reduction(reduction.name, reduction.op, body), reduction.name)
        else:
            self.renamed[Stat(reduction.name)] = value

    def _learn(self, reduction: Reduction, wish: str) -> Stat:
        """The statistic with this reduction, an existing one when it is the same."""
        key = reduction.op, reduction.body
        if key not in self.reductions:
            self.reductions[key] = reduction
            self.rescaler.learn(reduction)
        elif self.reductions[key].name != wish:
            self.renamed[Stat(wish)] = Stat(self.reductions[key].name)
        return Stat(self.reductions[key].name)

    def _raw(self, name: str, op: str, body: Expr) -> Expr:
        fresh = f"{name}_raw"
        while fresh in self.names:
            fresh += "_"
        reduction = Reduction(
            fresh, "max" if op == "max" else "min" if op == "min" else "sum", body
        )
        found = self._learn(reduction, fresh)
        self.names.add(found.name)
        self.renamed.pop(Stat(fresh), None)
        return found

    def _sum(self, name: str, body: Expr) -> Expr | None:
        if not stats_in(body):
            return None
        positive = self.rescaler.positive
        terms = split(body, distribute=False, positive=positive)
        if len(terms) == 1 and stats_in(terms[0].coefficient):
            return self._parts(name, terms)
        if self._streams(body):
            return None
        terms = split(body, distribute=True, positive=positive)
        divides = 1 < len(terms) <= _MOST_PARTS and all(
            stats_in(t.body) != stats_in(body) for t in terms
        )
        harmless = all(self._never_cancels(t) for t in terms)
        return self._parts(name, terms) if divides and harmless else None

    def _streams(self, body: Expr) -> bool:
        return not isinstance(self.rescaler.verdict(body, stats_in(body)), Refused)

    def _never_cancels(self, term: Term) -> bool:
        """Whether a part may be added up on its own: it is of one sign, or alone with its class of keys."""
        sign = nonnegative(term.coefficient, self.rescaler.positive)
        return (sign and nonnegative(term.body, self.rescaler.positive)) or term.selected

    def _parts(self, name: str, terms: list[Term]) -> Expr:
        return total([(1, self._part(name, t)) for t in terms])

    def _part(self, name: str, term: Term) -> Expr:
        raw, factor = self._raw(name, "sum", term.body), term.plain_coefficient
        part = make("mul", raw, factor)
        if not stats_in(factor):
            return part
        # A row or class without keys has sum 0, also where its factor is 1/0.
        return make("where", make("eq", raw, ZERO), raw, part)

    def _extremum(self, reduction: Reduction) -> Expr | None:
        """The reduction in terms of one over a body with shifts and scales taken off; None without any."""
        body, undo = reduction.body, list[Callable[[Expr], Expr]]()
        while (step := self._peeled(body)) is not None:
            body = step[0]
            undo.append(step[1])
        if not undo:
            return None
        raw = value = self._raw(reduction.name, reduction.op, body)
        for again in reversed(undo):
            value = again(value)
        # The extremum over no keys stays infinite.
        return make("where", make("lt", make("abs", raw), Const(INFINITY)), value, raw)

    def _peeled(self, body: Expr) -> tuple[Expr, Callable[[Expr], Expr]] | None:
        """max(x + c) = max(x) + c, and max(c x) = c max(x) for c >= 0: x, and how to put c back."""
        terms = addends(body)
        shifts = [t for t in terms if is_row_only(t[1]) and stats_in(t[1])]
        rest = [t for t in terms if t not in shifts]
        if shifts and rest and rest[0][0] > 0:
            return total(rest), lambda x: total([(1, x), *shifts])
        match split(body, distribute=False, positive=self.rescaler.positive):
            case [term] if stats_in(term.coefficient) and not is_row_only(body):
                scale = term.plain_coefficient
                if nonnegative(scale, self.rescaler.positive):
                    return term.body, lambda x: make("mul", x, scale)
        return None
