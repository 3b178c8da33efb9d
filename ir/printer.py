"""Turns programs and streaming plans into stable, readable text; ``ir/parser.py`` reads programs back.

::

    program Gemma2Local
      param cap: float
      param window: int
      score  = cap * tanh(dot / cap)
      mask   = k <= q and q - k < window
      m0     = max(score)
      l0     = sum(exp(score - m0))
      weight = exp(score - m0) / l0
      keep lse = m0 + log(l0)
      output = value

Lines stand in the order of evaluation. Integers are written as ``4``, floats with a dot, an
exponent or as inf or nan. A formula that one formula uses twice gets a line ``let t0 = ...``
before its first user. Reductions over the value features d are written ``sum_d(...)``,
``max_d(...)``, ``min_d(...)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
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
    children,
    walk,
)
from attncompiler.ir.ops import OPS
from attncompiler.ir.program import Program, Reduction
from attncompiler.ir.spelling import ATOM, BINDING, COMPARISON, declared, spell
from attncompiler.ir.streaming import Accumulator, RowStat, StreamingPlan

_NUMBERS = (*"0123456789-", "inf", "nan")


@dataclass(frozen=True, slots=True)
class Names:
    """How the names of one program are written, and the ``let`` names given so far."""

    params: frozenset[str] = frozenset()
    stats: frozenset[str] = frozenset()
    lets: dict[Expr, str] = field(default_factory=dict)

    @staticmethod
    def of(program: Program) -> Names:
        """The names that a program declares or uses."""
        nodes = [n for _, e in program.expressions() for n in walk(e)]
        params = {p.name for p in program.params} | {n.name for n in nodes if isinstance(n, Param)}
        reductions = (*program.reductions, *program.output_reductions)
        stats = {r.name for r in reductions} | {n.name for n in nodes if isinstance(n, Stat)}
        return Names(frozenset(params), frozenset(stats))

    def stat(self, name: str) -> str:
        """A statistic as expressions write it."""
        return spell(name, "stat", self.params)

    def new_let(self) -> str:
        """An unused name for a ``let`` line."""
        taken = self.params | self.stats | set(self.lets.values())
        return next(n for i in range(len(taken) + 1) if (n := f"t{i}") not in taken)


def print_expression(expr: Expr, names: Names | None = None) -> str:
    """One expression in infix; shared parts are written out wherever they are used."""
    names = Names() if names is None else names
    memo: dict[Expr, tuple[str, int]] = {}
    for node in walk(expr, known=names.lets):
        memo[node] = _spelled(node, names, memo)
    return names.lets[expr] if expr in names.lets else memo[expr][0]


def _spelled(node: Expr, names: Names, memo: dict[Expr, tuple[str, int]]) -> tuple[str, int]:
    def inside(child: Expr, binding: int) -> str:
        if child in names.lets:
            return names.lets[child]
        text, own = memo[child]
        return text if own >= binding else f"({text})"

    match node:
        case Const(bool() as value):
            return ("true" if value else "false"), ATOM
        case Const(value):
            return repr(value), (BINDING["neg"] if repr(value).startswith("-") else ATOM)
        case Param(name, _):
            return spell(name, "param", names.stats), ATOM
        case Stat(name):
            return names.stat(name), ATOM
        case OldStat(name):
            return f"old({names.stat(name)})", ATOM
        case Local(name, _, _):
            return spell(name, "local", names.params | names.stats), ATOM
        case Size(name) | Index(name):
            return name, ATOM
        case Dot():
            return "dot", ATOM
        case Score():
            return "score", ATOM
        case Value():
            return "value", ATOM
        case OutGrad():
            return "out_grad", ATOM
        case WeightGrad():
            return "weight_grad", ATOM
        case Load(tensor, indices, _):
            return f"{declared(tensor)}[{', '.join(inside(i, 0) for i in indices)}]", ATOM
        case Call("neg", (x,)):
            text = inside(x, BINDING["neg"])
            number = text.startswith(_NUMBERS)  # ``-4`` is one constant, ``-(4)`` an operation
            return f"-({text})" if number else f"-{text}", BINDING["neg"]
        case Call("not", (x,)):
            return f"not {inside(x, BINDING['not'])}", BINDING["not"]
        case Call(op, (x, y)) if OPS[op].infix:
            own = BINDING[op]
            left = inside(x, own + (own == COMPARISON or op == "pow"))
            return f"{left} {OPS[op].infix} {inside(y, own + 1)}", own
        case Call(op, args):
            return f"{op}({', '.join(inside(a, 0) for a in args)})", ATOM
        case _:
            assert_never(node)


def let_lines(expr: Expr, names: Names) -> Iterator[str]:
    """A line for each part of a formula that it uses more than once and that is not tiny."""
    nodes = list(walk(expr, known=names.lets))
    users = Counter(c for n in nodes for c in children(n))
    for node in nodes:
        if users[node] > 1 and node not in names.lets and _is_large(node):
            text = print_expression(node, names)
            names.lets[node] = names.new_let()
            yield f"let {names.lets[node]} = {text}"


def _is_large(node: Expr) -> bool:
    return bool(children(node)) and any(children(c) for c in children(node))


def print_program(program: Program) -> str:
    """The text of a program, ending in a line end; ``parse_program`` reads it back as an equal one."""
    names = Names.of(program)
    lines = [f"program {declared(program.name)}"]
    lines += [
        f"param {declared(p.name)}: {p.kind}{' lifted' if p.lifted else ''}" for p in program.params
    ]
    for t in program.tensors:
        axes = ", ".join(str(a) if isinstance(a, int) else declared(a) for a in t.axes)
        lines.append(f"tensor {declared(t.name)}[{axes}]: {t.kind}")
    if program.dot_factor != 1.0:
        lines.append(f"scale  = scale * {program.dot_factor!r}")

    def define(name: str, expr: Expr, wrap: str = "") -> None:
        lines.extend(let_lines(expr, names))
        text = print_expression(expr, names)
        lines.append(f"{name:<6} = {f'{wrap}({text})' if wrap else text}")

    def reduce(reduction: Reduction, suffix: str = "") -> None:
        define(names.stat(reduction.name), reduction.body, reduction.op + suffix)

    define("score", program.score)
    define("mask", program.mask)
    for reduction in program.reductions:
        reduce(reduction)
    define("weight", program.weight)
    for name, expr in program.kept:
        define(f"keep {declared(name)}", expr)
    for reduction in program.output_reductions:
        reduce(reduction, "_d")
    define("output", program.output)
    return "\n  ".join(lines) + "\n"


def print_plan(plan: StreamingPlan) -> str:
    """The text of a plan: its program, then what each pass computes, and the reasons."""
    names = Names.of(plan.program)
    plural = "" if plan.passes == 1 else "es"
    lines = [f"plan {declared(plan.program.name)}: {plan.passes} pass{plural} over the keys"]

    def part(item: RowStat | Accumulator) -> None:
        match item:
            case RowStat(name, op, body):
                text = f"{names.stat(name):<6} = {op}({print_expression(body, names)})"
            case Accumulator(name, body):
                term = print_expression(Call("mul", (body, Value())), names)
                text = f"{name:<6} = sum({term})"
            case _:
                assert_never(item)
        lines.append(f"    {text}")
        if item.factor is not None:
            lines.append(f"      rescaled by {print_expression(item.factor, names)}")

    for pass_ in range(plan.passes):
        items: tuple[RowStat | Accumulator, ...]
        items = (*plan.stats_of(pass_), *plan.accumulators_of(pass_))
        for sweep in sorted({i.sweep for i in items}):
            lines.append(f"  pass {pass_}, sweep {sweep}")
            for item in items:
                if item.sweep == sweep:
                    part(item)
    lines.append("  finally")
    for a in plan.accumulators:
        lines += [f"    {line}" for line in let_lines(a.coefficient, names)]
    terms = [
        a.name
        if a.coefficient is Const(1.0)
        else f"({print_expression(a.coefficient, names)}) * {a.name}"
        for a in plan.accumulators
    ]
    lines.append(f"    value  = {' + '.join(terms) or '0.0'}")
    for name, expr in plan.program.kept:
        lines += [f"    {line}" for line in let_lines(expr, names)]
        lines.append(f"    keep {declared(name)} = {print_expression(expr, names)}")
    lines += [f"    {line}" for line in let_lines(plan.program.output, names)]
    lines.append(f"    output = {print_expression(plan.program.output, names)}")
    lines += [f"  because {reason}" for reason in plan.reasons]
    return print_program(plan.program) + "\n" + "\n".join(lines) + "\n"
