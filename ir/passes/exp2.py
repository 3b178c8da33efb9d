"""Turns exp of scores into exp2 of scores that already carry the factor log2(e), at no cost an element.

Takes a canonical program; leaves one whose score, and with it every maximum and minimum of scores, is
log2(e) times what it was: exp(score - m) becomes exp2(score - m). The factor goes into ``dot_factor`` where
the score is linear in the dot product, else into a row-only factor (cap of a soft cap); kept formulas divide
it out again. Programs where an element would need one more multiplication (a sigmoid, a sum of squared
scores) come back as the same object, and so do those without such an exp.

Example: ``score = dot + slope[h] * to_float(k - q); m = max(score); weight = exp(score - m)`` becomes
``scale = scale * 1.44..; score = dot + slope[h] * 1.44.. * to_float(k - q); m = max(score);
weight = exp2(score - m)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Score,
    Stat,
    children,
    is_row_only,
    kind_of,
    walk,
    with_children,
)
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.program import Program, Reduction

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)


class _TooCostlyError(Exception):
    """An element would need a multiplication that it did not need before."""


def use_exp2(program: Program) -> Program:
    """Scale the scores by log2(e) and take exp2 of them; the same object where that does not pay."""
    if not any(_is_exp_of_score(n) for n in walk(*(e for _, e in program.expressions()))):
        return program
    try:
        return _with_scaled_scores(_with_scaled_score(program))
    except _TooCostlyError:
        return program


def _is_exp_of_score(node: Expr) -> bool:
    match node:
        case Call("exp", (x,)):
            return Score() in set(walk(x))
        case _:
            return False


def _with_scaled_score(program: Program) -> Program:
    """The program with log2(e) times its score, all else unchanged."""
    try:
        linear = _Scaling({Dot()}).scaled(program.score)
        return replace(program, score=linear, dot_factor=program.dot_factor * LOG2_E)
    except _TooCostlyError:
        return replace(program, score=_Scaling(set()).scaled(program.score))


def _with_scaled_scores(program: Program) -> Program:
    """The formulas after the score, given that the score is log2(e) times what they were written for."""
    scaling = _Scaling({Score()})
    reductions: list[Reduction] = []
    for r in program.reductions:
        body, is_scaled = scaling.reduced(r)
        reductions.append(replace(r, body=body))
        if is_scaled:
            scaling.atoms.add(Stat(r.name))
    return replace(
        program,
        reductions=tuple(reductions),
        weight=scaling.plain(program.weight),
        kept=tuple((name, scaling.plain(e)) for name, e in program.kept),
        output_reductions=tuple(
            replace(r, body=scaling.plain(r.body)) for r in program.output_reductions
        ),
        output=scaling.plain(program.output),
    )


@dataclass(slots=True)
class _Scaling:
    """Rewrites formulas in a world where the ``atoms`` are log2(e) times what the formulas mean.

    Raises _TooCostlyError where a key-dependent value would have to be multiplied.
    """

    atoms: set[Expr]
    plains: dict[Expr, Expr] = field(default_factory=dict)
    scaleds: dict[Expr, Expr] = field(default_factory=dict)

    def plain(self, expr: Expr) -> Expr:
        """The formula's own value."""
        if expr not in self.plains:
            self.plains[expr] = self._plain(expr) if self._touches(expr) else expr
        return self.plains[expr]

    def scaled(self, expr: Expr) -> Expr:
        """log2(e) times the value of a formula of kind float."""
        if expr not in self.scaleds:
            free = is_row_only(expr) and not self._touches(expr)
            self.scaleds[expr] = make("mul", expr, Const(LOG2_E)) if free else self._scaled(expr)
        return self.scaleds[expr]

    def reduced(self, reduction: Reduction) -> tuple[Expr, bool]:
        """The new body, and whether the statistic is scaled: sums only where they cannot be plain."""
        if reduction.op != "sum" and self._touches(reduction.body):
            return self.scaled(reduction.body), True
        try:
            return self.plain(reduction.body), False
        except _TooCostlyError:
            return self.scaled(reduction.body), True

    def _touches(self, expr: Expr) -> bool:
        return not self.atoms.isdisjoint(walk(expr))

    def _plain(self, expr: Expr) -> Expr:
        match expr:
            case Call("exp", (x,)):
                return make("exp2", self.scaled(x))
            case Call("sign", (x,)):
                return make("sign", self.scaled(x))
            case Call("lt" | "le" | "gt" | "ge" | "eq" | "ne" as op, (x, y)) if (
                kind_of(x) == "float"
            ):
                return make(op, self.scaled(x), self.scaled(y))
            case Dot() | Score():
                raise _TooCostlyError
            case Stat():
                return make("mul", expr, Const(LN_2))
            case Call("max" | "min", _) if is_row_only(expr):  # once, as other formulas have it
                return make("mul", self.scaled(expr), Const(LN_2))
            case _:
                return with_children(expr, tuple(self.plain(c) for c in children(expr)))

    def _scaled(self, expr: Expr) -> Expr:
        match expr:
            case _ if expr in self.atoms:
                return expr
            case Call("add" | "sub" | "min" | "max" as op, (x, y)):
                return make(op, self.scaled(x), self.scaled(y))
            case Call("neg" | "abs" as op, (x,)):
                return make(op, self.scaled(x))
            case Call("where", (c, x, y)):
                return make("where", self.plain(c), self.scaled(x), self.scaled(y))
            case Call("div", (x, y)) if not self._touches(y):
                return make("div", self.scaled(x), self.plain(y))
            case Call("mul", (x, y)) if not self._touches(y) and (
                self._touches(x) or is_row_only(x) or not is_row_only(y)
            ):
                return make("mul", self.scaled(x), self.plain(y))
            case Call("mul", (x, y)) if not self._touches(x):
                return make("mul", self.plain(x), self.scaled(y))
            case _ if is_row_only(expr):
                return make("mul", self.plain(expr), Const(LOG2_E))
            case _:
                raise _TooCostlyError
