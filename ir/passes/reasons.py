"""Turns a streaming plan into sentences that say why each statistic and accumulator stands where it does."""

from __future__ import annotations

from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Index,
    Load,
    Local,
    OldStat,
    Param,
    Score,
    Size,
    Stat,
    Value,
    stats_in,
)
from attncompiler.ir.ops import OPS
from attncompiler.ir.passes.rescale import Refused
from attncompiler.ir.passes.schedule import Scheduler
from attncompiler.ir.streaming import Accumulator, RowStat, StreamingPlan

_PRECEDENCE = {"or": 1, "and": 2, "<": 3, ">": 3, "<=": 3, ">=": 3, "==": 3, "!=": 3}
_PRECEDENCE |= {"|": 4, "^": 5, "&": 6, "<<": 7, ">>": 7, "+": 8, "-": 8}
_PRECEDENCE |= {"*": 9, "/": 9, "//": 9, "%": 9, "**": 11}
_LONGEST = 100


def explain(plan: StreamingPlan, scheduler: Scheduler) -> tuple[str, ...]:
    """One line for each statistic and accumulator, and one for the number of passes."""
    lines = [_stat_line(s, plan, scheduler) for s in plan.stats]
    lines += [_accumulator_line(a, plan) for a in plan.accumulators]
    count = "1 pass" if plan.passes == 1 else f"{plan.passes} passes"
    return (*lines, f"{count} over the keys, {len(plan.accumulators)} accumulated sum(s) of values")


def _stat_line(stat: RowStat, plan: StreamingPlan, scheduler: Scheduler) -> str:
    where = f"{stat.name} = {stat.op}({brief(stat.body)})"
    if stat.running:
        return f"{where} streams with {', '.join(stat.running)}{_rescaled(stat)}"
    earlier = stats_in(stat.body)
    if not earlier:
        return f"{where} reads no other statistic and streams directly"
    return f"{where} needs its own pass after {', '.join(sorted(earlier))}: {_refusal(stat, scheduler)}"


def _refusal(part: RowStat | Accumulator, scheduler: Scheduler) -> str:
    op = part.op if isinstance(part, RowStat) else "sum"
    verdict = scheduler.verdict(part.body, op, stats_in(part.body))
    if isinstance(verdict, Refused):
        return f"{brief(part.body)} {verdict.why}"
    return "it could stream, but they are final before another statistic can start"


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
        return f"{sum_} is summed when {', '.join(sorted(stats_in(acc.body)))} are final{note}"
    return f"{sum_} reads no statistic and streams directly{note}"


def brief(expr: Expr) -> str:
    """An expression on one line, cut where it is long."""
    text = _text(expr, 0)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _text(expr: Expr, outer: int) -> str:
    match expr:
        case Const(value):
            return f"{value:g}" if isinstance(value, float) else str(value)
        case Param(name) | Size(name) | Stat(name) | Local(name):
            return name
        case OldStat(name):
            return f"{name}_old"
        case Index(axis):
            return axis
        case Dot():
            return "dot"
        case Score():
            return "s"
        case Value():
            return "o"
        case Load(tensor, indices, _):
            return f"{tensor}[{', '.join(_text(i, 0) for i in indices)}]"
        case Call(op, args):
            sign = OPS[op].infix
            if len(args) == 2 and sign:
                level = _PRECEDENCE[sign]
                inner = f"{_text(args[0], level)} {sign} {_text(args[1], level + 1)}"
                return f"({inner})" if level < outer else inner
            if sign:
                return f"{sign}{_text(args[0], 10)}"
            if op in ("to_float", "to_int"):
                return _text(args[0], outer)
            return f"{op}({', '.join(_text(a, 0) for a in args)})"
