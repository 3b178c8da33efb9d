"""Turns a streaming plan into sentences that say why each statistic and accumulator stands where it does."""

from __future__ import annotations

from attncompiler.ir.expr import Expr, children, stats_in, walk
from attncompiler.ir.passes.rescale import Refused
from attncompiler.ir.passes.schedule import Scheduler
from attncompiler.ir.printer import print_expression
from attncompiler.ir.streaming import Accumulator, RowStat, StreamingPlan

_LARGEST = 400
_LONGEST = 100


def explain(plan: StreamingPlan, scheduler: Scheduler) -> tuple[str, ...]:
    """One line for each statistic and accumulator, and one for the number of passes."""
    lines = [_stat_line(s, plan, scheduler) for s in plan.stats]
    lines += [_accumulator_line(a, plan) for a in plan.accumulators]
    count = "1 pass" if plan.passes == 1 else f"{plan.passes} passes"
    sums = "1 sum" if len(plan.accumulators) == 1 else f"{len(plan.accumulators)} sums"
    return (*lines, f"{count} over the keys, {sums} of values")


def _stat_line(stat: RowStat, plan: StreamingPlan, scheduler: Scheduler) -> str:
    where = f"{stat.name} = {stat.op}({brief(stat.body)})"
    if stat.running:
        return f"{where} streams with {', '.join(stat.running)}{_rescaled(stat)}"
    earlier = stats_in(stat.body)
    if not earlier:
        return f"{where} reads no other statistic and streams directly"
    verdict = scheduler.verdict(stat.body, stat.op, earlier)
    if isinstance(verdict, Refused):
        names = ", ".join(sorted(earlier))
        return f"{where} needs its own pass after {names}: {brief(stat.body)} {verdict.why}"
    return f"{where} is taken in pass {stat.pass_ + 1}, which comes anyway; {_final(earlier)} there"


def _final(stats: frozenset[str]) -> str:
    return f"{', '.join(sorted(stats))} {'is' if len(stats) == 1 else 'are'} final"


def _rescaled(part: RowStat | Accumulator) -> str:
    if part.factor is None:
        return ", which cancel: nothing is rescaled"
    moves = ", ".join(part.running)
    return f": what was summed is multiplied by {brief(part.factor)} when {moves} moves"


def _accumulator_line(acc: Accumulator, plan: StreamingPlan) -> str:
    sum_ = f"{acc.name} = sum({brief(acc.body)} * value), used as {brief(acc.coefficient)} * {acc.name},"
    shared = [s.name for s in plan.stats if s.body is acc.body and s.pass_ == acc.pass_]
    note = f"; its terms are those of {shared[0]}" if shared else ""
    if acc.running:
        return f"{sum_} streams with {', '.join(acc.running)}{_rescaled(acc)}{note}"
    if stats_in(acc.body):
        return f"{sum_} is summed in pass {acc.pass_ + 1}, where {_final(stats_in(acc.body))}{note}"
    return f"{sum_} reads no statistic and streams directly{note}"


def brief(expr: Expr) -> str:
    """An expression on one line, cut where it is long."""
    size: dict[Expr, int] = {}
    for node in walk(expr):
        size[node] = 1 + sum(size[c] for c in children(node))
    if (
        size[expr] > _LARGEST
    ):  # shared parts are written out, so the text of a large one has no bound
        return "its formula"
    text = print_expression(expr)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
