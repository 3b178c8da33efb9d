"""Turns a Kernel into stable, readable text: what each loop computes, from the outermost to the element.

::

    kernel Alibi: 1 pass over the keys; a block holds rows of several heads
      tile possible = q_hi - k_lo >= 0
      tile certain  = q_lo - k_hi >= 0
      pass 0
        row r0_0 = slope[h * slope.stride0]
        row r0_1 = q
        score  = dot + r0_0 * to_float(k - r0_1)
        mask   = k <= r0_1
        sweep 0
          m      = max(score)
        ...

A formula that one loop body uses twice gets a line ``let t0 = ...`` before its first user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import assert_never

from attncompiler.ir.expr import Call, Const, Expr, Param, Value, children, walk
from attncompiler.ir.kernel import (
    Finish,
    Kernel,
    KernelPass,
    Let,
    StatUpdate,
    Sweep,
    WeightTile,
    extent,
    stride,
)
from attncompiler.ir.printer import Names, print_expression
from attncompiler.ir.spans import Span
from attncompiler.ir.spelling import declared


def print_kernel(kernel: Kernel) -> str:
    """The text of a kernel, ending in a line end."""
    program = kernel.plan.program
    names = Names.of(program)
    for tensor in kernel.tensors:
        for axis in range(len(tensor.axes)):
            for part in (stride, extent):
                text = part(declared(tensor.name), axis)
                names.lets[Param(part(tensor.name, axis), "int")] = text
    passes = "1 pass" if len(kernel.passes) == 1 else f"{len(kernel.passes)} passes"
    heads = "rows of several heads" if kernel.packs_heads else "rows of one head"
    lines = [f"kernel {declared(program.name)}: {passes} over the keys; a block holds {heads}"]
    lines += [f"  param {declared(p.name)}: {p.kind}" for p in kernel.params]
    for t in kernel.tensors:
        axes = ", ".join(str(a) if isinstance(a, int) else declared(a) for a in t.axes)
        lines.append(f"  tensor {declared(t.name)}[{axes}]: {t.kind}")

    tiles = _Scope(names, "  ", (kernel.possible, kernel.certain))
    if kernel.ranges is not None:
        tiles.lines += [
            f"  tile keys     : {text}" for text in print_spans(kernel.ranges.spans, "k", names)
        ]
    tiles.define("tile possible =", kernel.possible)
    tiles.define("tile certain  =", kernel.certain)
    uniform = _Scope.of_lets(names, "  ", "uniform", kernel.uniform)
    lines += [*tiles.lines, *uniform.lines]
    for number, kernel_pass in enumerate(kernel.passes):
        lines += [f"  pass {number}", *_pass_lines(kernel_pass, names)]
    lines += ["  finish", *_finish_lines(kernel.finish, names)]
    return "\n".join(lines) + "\n"


def print_spans(spans: Sequence[Span], axis: str, names: Names) -> list[str]:
    """Ranges of positions along an axis, one a line."""
    lines = []
    for span in spans:
        text = f"{print_expression(span.lo, names)} <= {axis} < {print_expression(span.end, names)}"
        text += f" in steps of {span.step}" if span.step > 1 else ""
        text += "" if span.solid else ", with holes"
        text += "" if span.when is Const(True) else f", if {print_expression(span.when, names)}"
        lines.append(text)
    return lines or ["none"]


@dataclass(slots=True)
class _Scope:
    """Lines of one loop body, which computes ``roots``; its ``let`` names are its own."""

    names: Names
    indent: str
    roots: InitVar[Iterable[Expr]]
    lines: list[str] = field(default_factory=list)
    users: Counter[Expr] = field(default_factory=Counter)

    def __post_init__(self, roots: Iterable[Expr]) -> None:
        self.names = replace(self.names, lets=dict(self.names.lets))
        roots = list(roots)
        self.users.update(roots)
        for node in walk(*roots, known=self.names.lets):
            self.users.update(children(node))

    @staticmethod
    def of_lets(names: Names, indent: str, loop: str, lets: Sequence[Let]) -> _Scope:
        """The lines of values computed in one loop."""
        scope = _Scope(names, indent, [let.expr for let in lets])
        scope.lets(loop, lets)
        return scope

    def text(self, expr: Expr) -> str:
        """An expression; what the loop body uses more than once is named in lines before."""
        for node in walk(expr, known=self.names.lets):
            if self.users[node] > 1 and any(children(c) for c in children(node)):
                text = print_expression(node, self.names)
                self.names.lets[node] = self.names.new_let()
                self.lines.append(f"{self.indent}let {self.names.lets[node]} = {text}")
        return print_expression(expr, self.names)

    def define(self, head: str, expr: Expr, before: str = "", after: str = "") -> None:
        text = self.text(expr)
        self.lines.append(f"{self.indent}{head} {before}{text}{after}")

    def lets(self, loop: str, lets: Iterable[Let]) -> None:
        for let in lets:
            del self.users[let.expr]  # it has a name already
            self.define(f"{loop} {let.local.name} =", let.expr)
            if children(let.expr):
                self.names.lets[let.expr] = let.local.name


def _pass_lines(kernel_pass: KernelPass, names: Names) -> list[str]:
    rows = _Scope.of_lets(names, "    ", "row", kernel_pass.rows)
    keys = _Scope.of_lets(names, "    ", "key", kernel_pass.keys)
    mask = kernel_pass.mask
    elements = _Scope(
        names, "    ", [kernel_pass.score] if mask is None else [kernel_pass.score, mask]
    )
    elements.define("score  =", kernel_pass.score)
    if mask is not None:
        elements.define("mask   =", mask)
    lines = [*rows.lines, *keys.lines, *elements.lines]
    for number, sweep in enumerate(kernel_pass.sweeps):
        lines += [f"    sweep {number}", *_sweep_lines(sweep, names)]
    return lines


def _sweep_lines(sweep: Sweep, names: Names) -> list[str]:
    parts = sweep.parts
    factors = [p.factor for p in parts if p.factor is not None]
    lanes = [let.expr for let in sweep.lanes]
    scope = _Scope(names, "      ", [*lanes, *factors, *(p.body for p in parts)])
    scope.lets("lane", sweep.lanes)
    for part in parts:
        rescaled = "" if part.factor is None else f", rescaled by {scope.text(part.factor)}"
        match part:
            case StatUpdate(name, op, body):
                scope.define(f"{names.stat(name):<6} =", body, f"{op}(", f"){rescaled}")
            case WeightTile(name, body):
                term = Call("mul", (body, Value()))
                scope.define(f"{name:<6} =", term, "sum(", f"){rescaled}")
            case _:
                assert_never(part)
    return scope.lines


def _finish_lines(finish: Finish, names: Names) -> list[str]:
    outer = [*(let.expr for let in finish.rows), *(e for _, e in finish.coefficients)]
    rows = _Scope(names, "    ", [*outer, *(e for _, e in finish.kept)])
    rows.lets("row", finish.rows)
    for name, coefficient in finish.coefficients:
        rows.define(f"c_{name} =", coefficient)
    for name, kept in finish.kept:
        rows.define(f"keep {declared(name)} =", kept)
    terms = [f"c_{name} * {name}" for name, _ in finish.coefficients]
    rows.lines.append(f"    value  = {' + '.join(terms) or '0.0'}, or 0.0 in a row without a key")
    # Features are a loop of their own: nothing but the locals above is computed once for all of them.
    features = _Scope(names, "    ", [*(r.body for r in finish.reductions), finish.output])
    for r in finish.reductions:
        features.define(f"{names.stat(r.name):<6} =", r.body, f"{r.op}_d(", ")")
    features.define("output =", finish.output)
    return [*rows.lines, *features.lines]
