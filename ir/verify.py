"""Turns programs and plans into nothing, or into a VerifyError that names the slot and shows the text.

What is checked: names are unique and declared, kinds and numbers of indices fit the declarations,
every slot reads only what exists when it is computed, and what is one value a row does not vary
with the key. Kinds of operands are checked when calls are built (``ir/expr.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Index,
    Load,
    Local,
    OldStat,
    OutGrad,
    Param,
    Score,
    Size,
    Stat,
    Value,
    WeightGrad,
    axes_of,
    kind_of,
    stats_in,
    walk,
)
from attncompiler.ir.ops import Kind
from attncompiler.ir.printer import print_expression, print_plan, print_program
from attncompiler.ir.program import IMPLICIT_PARAMS, Program
from attncompiler.ir.streaming import Accumulator, RowStat, StreamingPlan


class VerifyError(Exception):
    """A program or plan that breaks a rule of its level: a bug of the compiler, not of the user."""

    def __init__(self, slot: str, problem: str, text: str) -> None:
        """``slot``: the formula at fault; ``problem``: the broken rule; ``text``: the whole level."""
        super().__init__(f"{slot}: {problem}\n\n{text}")
        self.slot = slot
        self.problem = problem


def verify_program(program: Program) -> None:
    """Raise VerifyError unless the program is well formed."""
    for slot, problem in _program_problems(program):
        raise VerifyError(slot, problem, print_program(program))


def verify_plan(plan: StreamingPlan) -> None:
    """Raise VerifyError unless the plan and its program are well formed."""
    verify_program(plan.program)
    for slot, problem in _plan_problems(plan):
        raise VerifyError(slot, problem, print_plan(plan))


def _program_problems(program: Program) -> Iterable[tuple[str, str]]:
    reductions = (*program.reductions, *program.output_reductions)
    for what, names in (
        ("param", [p.name for p in program.params]),
        ("tensor", [t.name for t in program.tensors]),
        ("reduction", [r.name for r in reductions]),
        ("keep", [name for name, _ in program.kept]),
    ):
        if len(set(names)) < len(names):
            yield what, f"a name is used twice in {', '.join(names)}"
    if not 0 < abs(program.dot_factor) < float("inf"):
        yield "scale", f"dot_factor is {program.dot_factor}"

    def slot(
        name: str, expr: Expr, axes: str, leaves: Iterable[Expr], stats: set[str], kind: Kind
    ) -> Iterable[tuple[str, str]]:
        if kind_of(expr) != kind:
            yield name, f"is of kind {kind_of(expr)}, not {kind}"
        for problem in _leaf_problems(program, expr, axes, frozenset(leaves), stats):
            yield name, problem

    known: set[str] = set()
    yield from slot("mask", program.mask, "bhgqk", (), known, "bool")
    yield from slot("score", program.score, "bhgqk", (Dot(),), known, "float")
    for r in program.reductions:
        yield from slot(r.name, r.body, "bhgqk", (Score(),), known, "float")
        known = known | {r.name}
    yield from slot("weight", program.weight, "bhgqk", (Score(),), known, "float")
    for name, expr in program.kept:
        yield from slot(f"keep {name}", expr, "bhgq", (), known, "float")
    for r in program.output_reductions:
        yield from slot(r.name, r.body, "bhgqd", (Value(),), known, "float")
        known = known | {r.name}
    yield from slot("output", program.output, "bhgqd", (Value(),), known, "float")


def _leaf_problems(
    program: Program, expr: Expr, axes: str, leaves: frozenset[Expr], stats: set[str]
) -> Iterable[str]:
    # Every call gives the position of the first query.
    params = {p.name: p.kind for p in program.params} | IMPLICIT_PARAMS
    tensors = {t.name: t for t in program.tensors}
    for node in walk(expr):
        match node:
            case Param(name, kind):
                if params.get(name) != kind:
                    yield f"reads a parameter {name} of kind {kind} that is not declared"
            case Load(tensor, indices, kind):
                decl = tensors.get(tensor)
                if decl is None or (decl.kind, len(decl.axes)) != (kind, len(indices)):
                    yield f"reads {print_expression(node)} ({kind}), which fits no declaration"
                if any(kind_of(i) != "int" for i in indices):
                    yield f"indexes {tensor} by something that is not an integer"
            case Index(axis):
                if axis not in axes:
                    yield f"reads the index {axis}, which it does not have"
            case Stat(name):
                if name not in stats:
                    yield f"reads the statistic {name}, which is not computed yet"
            case Dot() | Score() | Value() | OutGrad() | WeightGrad():
                if node not in leaves:
                    yield f"reads {print_expression(node)}"
            case OldStat(name):
                yield f"reads the old value of {name}, which only rescale factors may"
            case Local(name):
                yield f"reads {name}, which exists in kernels only"
            case Const() | Size() | Call():
                pass
            case _:
                assert_never(node)


def _plan_problems(plan: StreamingPlan) -> Iterable[tuple[str, str]]:
    ops = {r.name: r.op for r in plan.program.reductions}
    place = {s.name: (s.pass_, s.sweep) for s in plan.stats}
    if len(place) < len(plan.stats):
        yield "plan", "a statistic is computed twice"
    if len({a.name for a in plan.accumulators}) < len(plan.accumulators):
        yield "plan", "two accumulators have one name"
    for s in plan.stats:
        if s.name in ops and ops[s.name] != s.op:
            yield s.name, f"is a {s.op} here and a {ops[s.name]} in the program"
    items: tuple[RowStat | Accumulator, ...] = (*plan.stats, *plan.accumulators)
    for item in items:
        for problem in _item_problems(item, place, plan.passes):
            yield item.name, problem
    for a in plan.accumulators:
        if "k" in axes_of(a.coefficient):
            yield a.name, "the coefficient varies with the key"
        if missing := stats_in(a.coefficient) - set(place):
            yield a.name, f"the coefficient reads {', '.join(sorted(missing))}"
    for name, expr in plan.program.kept:
        if missing := stats_in(expr) - set(place):
            yield f"keep {name}", f"reads {', '.join(sorted(missing))}, which no pass computes"


def _item_problems(
    item: RowStat | Accumulator, place: dict[str, tuple[int, int]], passes: int
) -> Iterable[str]:
    if not 0 <= item.pass_ < passes:
        yield f"stands in pass {item.pass_} of {passes}"
    nodes = set(walk(item.body))
    if any(isinstance(n, Dot | Value | OldStat | Local) for n in nodes):
        yield "the body reads something that does not exist in a pass"
    for name in sorted(stats_in(item.body)):
        if name not in place:
            yield f"reads {name}, which no pass computes"
        elif place[name][0] > item.pass_:
            yield f"reads {name}, which a later pass computes"
        elif place[name][0] == item.pass_ and place[name][1] >= item.sweep:
            yield f"reads {name}, which no earlier sweep computes"
        elif (place[name][0] == item.pass_) != (name in item.running):
            yield f"{name} is not listed correctly among the running statistics"
    if item.factor is not None:
        moving = {n.name for n in walk(item.factor) if isinstance(n, Stat | OldStat)}
        if "k" in axes_of(item.factor):
            yield "the rescale factor varies with the key"
        if moving - set(place):
            yield "the rescale factor reads a statistic that no pass computes"
