"""Turns exponentials that could overflow into ones relative to the row's maximum, where no weight changes.

Takes a canonical program; leaves one in which exp(x) reads exp(x - m) with m = max(x), for each x that
varies with the key and subtracts no maximum or minimum yet, if the weight does not change when all x of a
row move by one amount (``ir/degree.py``). Formulas of other degrees that leave the row are corrected:
``l = sum(exp(score)); weight = exp(score) / l; keep lse = log(l)`` becomes ``m = max(score);
l = sum(exp(score - m)); weight = exp(score - m) / l; keep lse = log(l) + m``. What is not invariant, such
as exp(score) / (1 + l), stays as written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from attncompiler.ir.degree import Degree, degrees
from attncompiler.ir.expr import (
    Call,
    Const,
    Expr,
    Stat,
    children,
    is_row_only,
    stats_in,
    substitute,
    walk,
    with_children,
)
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.printer import Names, print_expression
from attncompiler.ir.program import Program, Reduction


def stabilize(program: Program) -> Program:
    """Subtract the row's maximum where no weight changes; the same object when there is no such place."""
    for exponential in _candidates(program):
        shift = _shift(program, exponential)
        if shift is not None:
            return stabilize(_shifted(program, shift))
    return program


def explain_stabilize(program: Program) -> str:
    """What ``stabilize`` does with each exponential and why, a line each; empty when there are none."""
    lines: list[str] = []
    names = Names.of(program)
    for exponential in _candidates(program):
        text = print_expression(exponential, names)
        if _shift(program, exponential) is None:
            lines.append(
                f"{text} stays as written: its weights change when a row's exponents all move by one amount"
            )
        else:
            lines.append(
                f"{text} is computed relative to the row's maximum, which cannot overflow: "
                "no weight changes when a row's exponents all move by one amount"
            )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Shift:
    """An exponential that may be shifted, and the degree of each statistic in it."""

    exponential: Call
    stats: dict[str, Degree]


def _candidates(program: Program) -> Iterator[Call]:
    """Exponentials of key-dependent values that subtract no maximum or minimum, in order of appearance."""
    extrema = {r.name for r in program.reductions if r.op != "sum"}
    for node in walk(*(r.body for r in program.reductions), program.weight):
        match node:
            case Call("exp" | "exp2", (x,)) if not is_row_only(x) and not stats_in(x) & extrema:
                yield node
            case _:
                pass


def _shift(program: Program, exponential: Call) -> _Shift | None:
    """The degrees of the statistics, if the weight has degree 0."""
    stats: dict[str, Degree] = {}
    for r in program.reductions:
        stats[r.name] = degrees((r.body,), exponential, stats)[r.body]
        if stats[r.name] is None:
            return None
    weight = degrees((program.weight,), exponential, stats)[program.weight]
    return _Shift(exponential, stats) if weight in (Fraction(0), "any") else None


def _shifted(program: Program, shift: _Shift) -> Program:
    (x,) = shift.exponential.args
    users = [i for i, r in enumerate(program.reductions) if shift.exponential in set(walk(r.body))]
    place = users[0] if users else len(program.reductions)
    before, after = program.reductions[:place], program.reductions[place:]
    known = next((r for r in before if (r.op, r.body) == ("max", x)), None)
    highest = known or Reduction(_new_name(program), "max", x)
    row = Stat(highest.name)
    relative: dict[Expr, Expr] = {
        shift.exponential: make(shift.exponential.op, make("sub", x, row))
    }

    def corrected(expr: Expr) -> Expr:
        return _corrected(expr, shift, row)

    def bodies(reductions: tuple[Reduction, ...]) -> tuple[Reduction, ...]:
        return tuple(replace(r, body=substitute(r.body, relative)) for r in reductions)

    return replace(
        program,
        reductions=(*before, *(() if known else (highest,)), *bodies(after)),
        weight=substitute(program.weight, relative),
        kept=tuple((name, corrected(e)) for name, e in program.kept),
        output_reductions=tuple(
            replace(r, body=corrected(r.body)) for r in program.output_reductions
        ),
        output=corrected(program.output),
    )


def _new_name(program: Program) -> str:
    names = Names.of(program)
    taken = names.params | names.stats
    return next(n for n in ("m", *(f"m{i}" for i in range(len(taken) + 1))) if n not in taken)


def _corrected(expr: Expr, shift: _Shift, row: Expr) -> Expr:
    """The formula's old value, written with the statistics of the shifted exponentials."""
    base_two = shift.exponential.op == "exp2"
    of = degrees((expr,), shift.exponential, shift.stats)

    def power(degree: Fraction, unit: float) -> Expr:
        return make("mul", row, Const(float(degree) * unit))

    memo: dict[Expr, Expr] = {}
    for node in walk(expr):
        degree = of[node]
        if isinstance(degree, Fraction) and degree != 0:
            grown = make(shift.exponential.op, power(degree, 1.0))
            memo[node] = make("mul", node, grown)
            continue
        match node, of.get(children(node)[0]) if children(node) else None:
            case Call("log", _), Fraction() as d if d != 0:
                memo[node] = make("add", node, power(d, math.log(2.0) if base_two else 1.0))
            case Call("log2", _), Fraction() as d if d != 0:
                memo[node] = make("add", node, power(d, 1.0 if base_two else math.log2(math.e)))
            case _ if degree is not None:
                memo[node] = node
            case _:
                memo[node] = with_children(node, tuple(memo[c] for c in children(node)))
    return memo[expr]
