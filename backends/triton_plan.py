"""Turns a TilePlan into the context of the Triton template of planning kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attncompiler.backends.gpu_expr import ExprPrinter, Named, Text
from attncompiler.backends.triton_loops import LoopPrinter, TensorArgument, reads
from attncompiler.ir.expr import Expr, Local
from attncompiler.ir.tile_plan import HEAD, TilePlan


@dataclass(frozen=True, slots=True)
class PlanContext:
    """Everything the template needs; ``values`` are those whose bounds in a tile are found first."""

    title: str
    definition: list[str]
    params: list[tuple[str, str]]
    tensors: list[TensorArgument]
    values: list[Named]
    possible: str
    certain: str
    mask_lets: list[Named]
    mask: str
    passed: list[str]


class PlanPrinter(LoopPrinter):
    """Builds the template's context for one plan; ``dtypes`` are those of the tensors that it reads."""

    def __init__(self, plan: TilePlan, dtypes: Sequence[str]) -> None:
        super().__init__(plan.tensors, dtypes)
        self.plan = plan

    def _leaf(self, printer: ExprPrinter, expr: Expr) -> Text:
        if expr is HEAD:
            return Text("i_h", "i")
        if isinstance(expr, Local) and expr not in self.locals:  # a bound of a value in a tile
            value, _, _ = expr.name.rpartition("_")
            lane = next(t.lane for x, t in self.locals.items() if t.code == value)
            return Text(expr.name, lane)
        return super()._leaf(printer, expr)

    def context(self, title: str, definition: str) -> PlanContext:
        """The template's context; ``definition`` is the user's source, printed at the top of the file."""
        plan = self.plan
        values = self.define((*plan.rows, *plan.keys))
        possible, certain = self.scalar(plan.possible), self.scalar(plan.certain)
        printer = self.printer()
        mask_lets = printer.define([plan.mask], "m")
        mask = printer.tile(printer(plan.mask))
        texts = [possible, certain, mask, *(n.code for n in (*values, *mask_lets))]
        return PlanContext(
            title=title,
            definition=definition.rstrip().splitlines(),
            params=self.params(plan.params),
            tensors=self.tensors(plan.tensors),
            values=values,
            possible=possible,
            certain=certain,
            mask_lets=mask_lets,
            mask=mask,
            passed=reads(
                ["i_h", "i_g", "i_b", "H", "G", *self.arguments(plan.params, plan.tensors)], texts
            ),
        )
