"""StreamingPlan: how a program walks over the keys, derived by ``ir/passes/derive.py``.

Within pass p the keys are visited tile by tile, and inside a tile sweep by sweep. Statistics of earlier passes
are row constants; those of pass p are *running*: bodies of later sweeps read their value after this tile.
When a tile moves running statistics from OldStat to Stat, each partial sum that used them is first multiplied
by its ``factor``, which equals body(Stat)/body(OldStat) for every key, and then the tile's terms are added::

    part = part * factor(old statistics, new statistics) + sum over the tile of body(new statistics)

The laws an evaluator or a kernel obeys:

1. *Identities.* A running maximum starts at -inf, a minimum at +inf, a sum and an accumulator at 0. Keys that
   are not allowed take part in nothing.
2. *Reading.* The row-only parts of a body that depend on running statistics (the ``m`` of exp(s - m), the
   max(m, sink) of exp(s - max(m, sink))) are computed once a row; a part that is not finite is read as 0.
   For a part that is a single maximum this says: at its identity it reads as 0, so that a score of -inf gives
   exp(-inf - 0) = 0 and never exp(-inf + inf). ``readable`` writes this into an expression. Only maxima and
   minima are read while they move, a sum when it is final; final values are read as they are.
3. *Rescaling.* A factor that is not finite is 0. It is not finite, or already 0, while a running maximum or
   minimum still holds its identity, and nothing but 0 was accumulated then: derivation streams a body only
   if it vanishes on keys that leave its statistics at their identity. ``rescaling`` writes this down.
   Sums without ``factor`` are never rescaled. A running maximum or minimum with a factor (which is then
   positive) is multiplied by it unless it holds its own identity, infinite as it is.
4. *Merging.* Two partial states over disjoint keys combine statistic by statistic in plan order: maxima by
   max, minima by min, and sums as a * factor(a's statistics, merged ones) + b * factor(b's, merged ones),
   with law 3 for each side by itself. Any partition merged in any order gives the same state.
5. *Finishing.* o = sum over accumulators of coefficient * acc, with final statistics. A row that met no allowed
   key has o = 0, whatever its coefficients are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attncompiler.ir.expr import (
    Call,
    Const,
    Expr,
    children,
    is_row_only,
    kind_of,
    stats_in,
    walk,
    with_children,
)
from attncompiler.ir.program import Program, ReduceOp

INFINITY = float("inf")
IDENTITY: dict[ReduceOp, float] = {"max": -INFINITY, "min": INFINITY, "sum": 0.0}


@dataclass(frozen=True, slots=True)
class RowStat:
    """A reduction placed in a pass.

    ``sweep`` orders the work inside one tile: a body may read running statistics of lower sweeps of its pass.
    ``running`` names the statistics of its own pass that the body reads, ``factor`` is the rescaling of what
    was reduced so far when they move; None when there are none, or when they cancel.
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
        """The statistics computed in one pass, in plan order."""
        return tuple(s for s in self.stats if s.pass_ == pass_)

    def accumulators_of(self, pass_: int) -> tuple[Accumulator, ...]:
        """The accumulators filled in one pass."""
        return tuple(a for a in self.accumulators if a.pass_ == pass_)


def finite_or_zero(expr: Expr) -> Expr:
    """``expr`` where it is finite, else 0 (NaN included)."""
    inside = Call("lt", (Call("abs", (expr,)), Const(INFINITY)))
    return Call("where", (inside, expr, Const(0.0)))


def row_parts(body: Expr, running: Iterable[str]) -> tuple[Expr, ...]:
    """The largest row-only subexpressions of a body that read one of the running statistics."""
    names = frozenset(running)
    moving = {n for n in walk(body) if names & stats_in(n)}
    inner = {c for n in moving if not is_row_only(n) for c in children(n)}
    return tuple(
        n for n in walk(body) if n in moving and is_row_only(n) and (n in inner or n is body)
    )


def readable(body: Expr, running: Iterable[str]) -> Expr:
    """The body under the law of reading: its row-only running parts that are not finite become 0."""
    memo: dict[Expr, Expr] = {
        part: finite_or_zero(part)
        for part in row_parts(body, running)
        if kind_of(part) == "float" and not isinstance(part, Const)
    }
    for node in walk(body):
        if node not in memo:
            memo[node] = with_children(node, tuple(memo[c] for c in children(node)))
    return memo[body]


def rescaling(part: RowStat | Accumulator) -> Expr | None:
    """The factor of a partial sum under the law of rescaling; None when it is never rescaled."""
    return None if part.factor is None else finite_or_zero(part.factor)
