"""Turns a Gradient into stable, readable text, in the order in which the backward computes.

::

    gradient Causal: reads max0, sum1 and the output row; 1 walk over the keys
      d_lse: gradient of lse
      delta  = sum_d(out_grad * value)
      value_grad = out_grad
      walk 0
        row d_sum1 = d_lse / sum1 + -delta / sum1
        weight = exp2(score - max0) * (1.0 / sum1)
        d_dot  = ...
      because sum_k dw_k weight_k is <go, o>: ...

A formula that is used twice gets a line ``let t0 = ...`` before its first user.
"""

from __future__ import annotations

from collections.abc import Iterable

from attncompiler.ir.expr import Expr
from attncompiler.ir.gradient import Gradient, Stage, TensorGradient
from attncompiler.ir.printer import Names, let_lines, print_expression
from attncompiler.ir.spelling import declared


def print_gradient(gradient: Gradient) -> str:
    """The text of a gradient, ending in a line end."""
    program = gradient.program
    names = Names.of(program)
    names = Names(names.params, names.stats | frozenset(_row_names(gradient)))
    reads = [names.stat(s) for s in gradient.saved]
    reads += ["the output row"] if gradient.reads_value else []
    walks = "1 walk" if len(gradient.stages) == 1 else f"{len(gradient.stages)} walks"
    head = f"gradient {declared(program.name)}: reads {', '.join(reads) or 'no statistic'}; "
    lines = [f"{head}{walks} over the keys"]
    lines += [f"  {names.stat(stat)}: gradient of {declared(k)}" for k, stat in gradient.kept]

    def define(indent: str, head: str, expr: Expr, wrap: str = "") -> None:
        lines.extend(f"{indent}{line}" for line in let_lines(expr, names))
        text = print_expression(expr, names)
        lines.append(f"{indent}{head} {f'{wrap}({text})' if wrap else text}")

    def tensors(indent: str, levels: Iterable[str]) -> None:
        for t in gradient.tensors:
            if t.level in levels:
                define(indent, f"{_target(t, names)} +=", t.value)

    for r in gradient.features:
        define("  ", f"{names.stat(r.name):<6} =", r.body, f"{r.op}_d")
    define("  ", "value_grad =", gradient.value_grad)
    tensors("  ", ("element", "epilogue"))
    for number, stage in enumerate(gradient.stages):
        lines.append(f"  walk {number}")
        for name, expr in stage.rows:
            define("    ", f"row {names.stat(name)} =", expr)
        for r in stage.reductions:
            define("    ", f"{names.stat(r.name):<6} =", r.body, r.op)
    define("    ", "weight =", gradient.weight)
    define("    ", "d_dot  =", gradient.dot_grad)
    if gradient.dot_scale != 1.0:
        lines.append(f"    d_q and d_k are multiplied by {gradient.dot_scale!r}")
    tensors("    ", ("key", "pair"))
    if any(t.level == "row" for t in gradient.tensors):
        lines.append("  finally")
        tensors("    ", ("row",))
    lines += [f"  because {reason}" for reason in gradient.reasons]
    return "\n".join(lines) + "\n"


def _row_names(gradient: Gradient) -> list[str]:
    def of(stage: Stage) -> list[str]:
        return [n for n, _ in stage.rows] + [r.name for r in stage.reductions]

    found = [stat for _, stat in gradient.kept] + [r.name for r in gradient.features]
    return found + [n for stage in gradient.stages for n in of(stage)]


def _target(t: TensorGradient, names: Names) -> str:
    indices = ", ".join(print_expression(i, names) for i in t.indices)
    return f"d_{declared(t.tensor)}[{indices}]"
