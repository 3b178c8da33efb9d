"""Differentiates what comes after the keys: the output slot, its reductions over d, and the kept statistics.

Everything here is a loop over the value features of a row, or one value a row; no key takes part.

What the output reads of a kept statistic passes through the gradient of that statistic, so that a row without an
allowed key, whose statistics are identities, gives nothing to the tensors they are made of. What the output reads of
a tensor by itself has its gradient in every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from attncompiler.ir.derivatives import ONE, ZERO, adjoints, chosen, over, times
from attncompiler.ir.expr import Expr, Load, OutGrad, Stat, Value, axes_of, stats_in, substitute
from attncompiler.ir.gradient import TensorGradient
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.passes.features import parts_along_d
from attncompiler.ir.passes.row_values import RowValues, seed, total
from attncompiler.ir.program import Program, Reduction


class EpilogueGradient:
    """The reductions over d that a backward needs, found as they are asked for.

    ``kept`` pairs each kept statistic with the row statistic that holds its gradient, ``value_grad`` is the gradient
    of an element of the row before the output slot. ``_read`` names the kept statistics as the output reads them.
    """

    def __init__(self, program: Program, rows: RowValues) -> None:
        self.rows = rows
        self._read: dict[Expr, Expr] = {
            formula: Stat(rows.fresh(name)) for name, formula in program.kept if stats_in(formula)
        }
        self.kept = tuple((name, rows.fresh(f"d_{name}")) for name, _ in program.kept)
        self.features: list[Reduction] = list(program.output_reductions)
        self.kept_seeds: dict[Expr, Expr] = {}
        for (_, formula), (_, stat) in zip(program.kept, self.kept, strict=True):
            seed(self.kept_seeds, formula, Stat(stat))
        self.output_seeds: dict[Expr, Expr] = {}
        self._seed_output(program)
        found = self._through_output()
        self.value_grad = found.get(Value(), ZERO)
        for formula, read in self._read.items():
            if read in found:
                seed(self.kept_seeds, formula, self.sum_over_features("d_read", found[read]))

    def _seed_output(self, program: Program) -> None:
        """The gradients of the output formula and of the bodies of its reductions over d, last to first."""
        seeds = self.output_seeds
        seed(seeds, substitute(program.output, self._read), OutGrad())
        for r in reversed(program.output_reductions):
            gradient = self._through_output().get(Stat(r.name))
            if gradient is None:
                continue
            passed_on = self.sum_over_features(f"d_{r.name}", gradient)
            if r.op != "sum":
                hit = make("eq", r.body, Stat(r.name))
                ties = self.sum_over_features(f"ties_{r.name}", chosen(hit, ONE))
                passed_on = chosen(hit, over(passed_on, ties))
            seed(seeds, substitute(r.body, self._read), passed_on)

    def _through_output(self, constants: AbstractSet[Expr] = frozenset()) -> dict[Expr, Expr]:
        """The gradient of every node of the output slot, written with the statistics' own formulas."""
        formulas = {stat: formula for formula, stat in self._read.items()}
        found = adjoints(self.output_seeds, constants)
        return {node: substitute(gradient, formulas) for node, gradient in found.items()}

    def delta(self) -> Expr:
        """<go, o>."""
        return self.sum_over_features("delta", times(self.value_grad, Value()))

    def through(self, leaf: Expr, constants: AbstractSet[Expr]) -> list[Expr]:
        """What output and kept statistics pass on to a value of the row, in parts."""
        parts = []
        gradient = self._through_output(constants).get(leaf)
        if gradient is not None:
            name = leaf.name if isinstance(leaf, Stat) else "row"
            parts.append(self.sum_over_features(f"d_{name}", gradient))
        gradient = adjoints(self.kept_seeds, constants).get(leaf)
        return parts if gradient is None else [*parts, gradient]

    def tensors(self, constants: AbstractSet[Expr]) -> Iterator[TensorGradient]:
        """Gradients of the tensors that output and kept statistics read."""
        for load, gradient in loads_of(self._through_output(constants)):
            if any("d" in axes_of(i) for i in load.indices):
                yield TensorGradient(load.tensor, load.indices, gradient, "element")
            else:
                value = self.sum_over_features(f"d_{load.tensor}", gradient)
                yield TensorGradient(load.tensor, load.indices, value, "epilogue")
        for load, gradient in loads_of(adjoints(self.kept_seeds, constants)):
            yield TensorGradient(load.tensor, load.indices, gradient, "row")

    def sum_over_features(self, wish: str, body: Expr) -> Expr:
        """The sum over d, what does not vary with d taken out of it."""
        return total([times(self._sum(wish, part), factor) for part, factor in parts_along_d(body)])

    def _sum(self, wish: str, body: Expr) -> Expr:
        for r in self.features:
            if r.op == "sum" and r.body is body:
                return Stat(r.name)
        name = self.rows.fresh(wish)
        self.features.append(Reduction(name, "sum", body))
        return Stat(name)

    def read_by(self, roots: list[Expr]) -> tuple[Reduction, ...]:
        """The reductions that others need; their bodies are added to ``roots``."""
        found: list[Reduction] = []
        for r in reversed(self.features):
            if r.name in stats_in(*roots):
                found.insert(0, r)
                roots.append(r.body)
        return tuple(found)


def loads_of(found: Mapping[Expr, Expr]) -> Iterator[tuple[Load, Expr]]:
    """The floating tensor elements among nodes with gradients."""
    for node, gradient in found.items():
        if isinstance(node, Load) and node.kind == "float" and gradient is not ZERO:
            yield node, gradient
