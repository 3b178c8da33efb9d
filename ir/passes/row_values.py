"""Names the values of a row that a backward computes, and writes them as short as they can be."""

from __future__ import annotations

from collections.abc import Sequence

from attncompiler.ir.algebra import expanded
from attncompiler.ir.derivatives import ZERO
from attncompiler.ir.expr import Expr, Stat, stats_in, substitute, walk
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.program import Program


class RowValues:
    """Row statistics with formulas, in the order in which they are computed; no name is given twice."""

    def __init__(self, program: Program) -> None:
        self.taken = {r.name for r in (*program.reductions, *program.output_reductions)}
        self.taken |= {name for name, _ in program.kept}
        self.formulas: list[tuple[str, Expr]] = []

    def fresh(self, wish: str) -> str:
        """An unused name."""
        name, number = wish, 1
        while name in self.taken:
            name, number = f"{wish}_{number}", number + 1
        self.taken.add(name)
        return name

    def define(self, wish: str, value: Expr) -> Expr:
        """A row statistic with the value."""
        if isinstance(value, Stat):
            return value
        name = self.fresh(wish)
        self.formulas.append((name, self.simplified(value)))
        return Stat(name)

    def simplified(self, value: Expr) -> Expr:
        """A value of the row with what cancels removed, if that makes it shorter.

        Less to compute, and exact where terms many times larger than the result would have to cancel.
        """
        candidates = [expanded(self.written_out(value)), expanded(value), value]
        return min(candidates, key=lambda e: sum(1 for _ in walk(e)))

    def written_out(self, value: Expr) -> Expr:
        """A value of the row without the statistics defined here."""
        for name, formula in reversed(self.formulas):
            value = substitute(value, {Stat(name): formula})
        return value

    def read_by(self, roots: list[Expr]) -> tuple[tuple[str, Expr], ...]:
        """The formulas that others need; they are added to ``roots``."""
        rows: list[tuple[str, Expr]] = []
        for name, formula in reversed(self.formulas):
            if name in stats_in(*roots):
                rows.insert(0, (name, formula))
                roots.append(formula)
        return tuple(rows)


def total(parts: Sequence[Expr]) -> Expr:
    """The sum of parts; a part that is 0 is left out."""
    result: Expr = ZERO
    for part in parts:
        if part is not ZERO:
            result = part if result is ZERO else make("add", result, part)
    return result


def seed(seeds: dict[Expr, Expr], root: Expr, gradient: Expr) -> None:
    """Add to the gradient of a root."""
    seeds[root] = make("add", seeds[root], gradient) if root in seeds else gradient
