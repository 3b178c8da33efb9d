"""Turns a TilePlan into the context of the template of planning kernels."""

from __future__ import annotations

from dataclasses import dataclass

from attncompiler.backends.cpp_context import Specialization, TensorText
from attncompiler.backends.cpp_expr import Definition
from attncompiler.backends.cpp_loops import LoopPrinter
from attncompiler.ir.expr import Expr, Local
from attncompiler.ir.tile_plan import HEAD, TilePlan


@dataclass(frozen=True, slots=True)
class TilePlanContext:
    """Everything the template needs."""

    title: str
    definition: list[str]
    spec: Specialization
    types: frozenset[str]
    real: str
    params: list[tuple[str, str]]
    tensors: list[TensorText]
    rows: list[Definition]
    keys: list[Definition]
    possible: str
    certain: str
    mask: str


class TilePlanPrinter(LoopPrinter):
    """Builds the template's context for one plan and the types of the tensors it reads."""

    def __init__(self, plan: TilePlan, spec: Specialization) -> None:
        super().__init__(spec, plan.tensors)
        self.plan = plan

    def scalar_leaf(self, expr: Expr) -> str:
        """As in other kernels; locals are the bounds of a tile, and its head."""
        if isinstance(expr, Local):
            if expr is HEAD:
                return "i_h"
            return f"{'rows' if expr.name.startswith('row') else 'key'}.{expr.name}"
        return super().scalar_leaf(expr)

    def context(self, title: str, definition: str) -> TilePlanContext:
        """The template's context; ``definition`` is the user's source, printed at the top of the file."""
        plan = self.plan
        return TilePlanContext(
            title=title,
            definition=definition.rstrip().splitlines(),
            spec=self.spec,
            types=self.element_types(),
            real=self.real,
            params=self.params(plan.params),
            tensors=self.tensors(plan.tensors),
            rows=self.scalars(plan.rows),
            keys=self.scalars(plan.keys),
            possible=self.scalar(plan.possible),
            certain=self.scalar(plan.certain),
            mask=self.scalar(plan.mask),
        )
