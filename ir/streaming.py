"""StreamingPlan: how a program walks over the keys, derived by ``ir/passes/derive.py``.

Within pass p the keys are visited tile by tile. Statistics of earlier passes are row constants; those of pass p
are *running*. When a tile moves a running statistic from OldStat(r) to Stat(r), a partial sum that used r is
multiplied by its ``factor``, an expression of OldStat and Stat only that equals body(Stat)/body(OldStat). The
factor of a partial sum whose running statistics still hold their identity is 0: nothing was accumulated.

The same factors are the merge law: two partial states over disjoint keys combine statistic by statistic, sums
rescaled from each side's own running values to the merged ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncompiler.ir.expr import Expr
from attncompiler.ir.program import Program, ReduceOp


@dataclass(frozen=True, slots=True)
class RowStat:
    """A reduction placed in a pass.

    ``sweep`` orders the work inside one tile: a body may read running statistics of lower sweeps of its pass.
    ``factor`` is None when the body reads no running statistic. For a max or min whose body reads a running
    statistic the factor is added (``shift``) or multiplied; see ``rescale``.
    """

    name: str
    op: ReduceOp
    body: Expr
    pass_: int
    sweep: int
    running: tuple[str, ...] = ()
    factor: Expr | None = None


@dataclass(frozen=True, slots=True)
class Accumulator:
    """One running sum ``acc = sum_k body_k * value_k``, used at the end as ``coefficient * acc``."""

    name: str
    body: Expr
    coefficient: Expr
    pass_: int
    sweep: int
    running: tuple[str, ...] = ()
    factor: Expr | None = None


@dataclass(frozen=True, slots=True)
class StreamingPlan:
    """The derived algorithm: out = output(sum of coefficient * accumulator).

    ``program`` is the program after the rewriting passes (its reductions and formulas are those of ``stats``).
    ``reasons`` says, a line a decision, why each statistic stands where it does.
    """

    program: Program
    stats: tuple[RowStat, ...]
    accumulators: tuple[Accumulator, ...]
    passes: int
    reasons: tuple[str, ...] = ()

    def stats_of(self, pass_: int) -> tuple[RowStat, ...]:
        return tuple(s for s in self.stats if s.pass_ == pass_)

    def accumulators_of(self, pass_: int) -> tuple[Accumulator, ...]:
        return tuple(a for a in self.accumulators if a.pass_ == pass_)
