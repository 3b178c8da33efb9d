"""Scores and masks of traced bodies: turns them into the Program of a softmax over the allowed keys."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from attncompiler.flex_bodies import NAME, Bodies
from attncompiler.functions import Value, exp, log, where
from attncompiler.ir.expr import Call, Const, Dot, Expr, Load, Param, Score, axes_of, walk
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.program import ParamDecl, Program
from attncompiler.prelude.normalizers import softmax
from attncompiler.recorder import Recorder, kind_of_operand
from attncompiler.scopes import Row
from attncompiler.symbols import Symbol


def program_of(bodies: Bodies, mask: Expr, *, max_scores: bool) -> Program:
    """The softmax over the scores of the bodies, under ``mask``; every program has the same name.

    Keeps ``lse``, and ``max_scores`` when asked. Keys whose score is -inf by the score's own formula leave the mask,
    which gives them the weight 0 that they have anyway and lets whole tiles be skipped.
    """
    score, finite = _finite(bodies.score, -math.inf)
    mask = make("and", mask, finite)
    rec = bodies.recorder
    left = any(isinstance(n, Const) and n.value in (math.inf, -math.inf) for n in walk(score))
    plain = _normalized(max_scores, guarded=left)
    params = [ParamDecl(n, kind_of_operand(v), lifted=True) for n, v in rec.lifted.items()]
    program = replace(plain, score=score, mask=mask, locations=rec.locations)
    used = {n.name for _, e in program.expressions() for n in walk(e) if isinstance(n, Param)}
    read = {n.tensor for _, e in program.expressions() for n in walk(e) if isinstance(n, Load)}
    return replace(
        program,
        params=tuple(p for p in params if p.name in used),
        tensors=tuple(d for n, d in rec.captured_declarations.items() if n in read),
    )


@cache
def _normalized(max_scores: bool, *, guarded: bool) -> Program:
    """The formulas of the normalizer alone; ``guarded`` also when all scores of a row may be -inf."""
    rec = Recorder(_normalized.__wrapped__.__code__)
    row, score = Row(rec), Symbol(Score(), rec)
    weight = (_guarded_softmax if guarded else softmax)(score, row).expr
    if max_scores:
        row.keep("max_scores", row.max(score))
    reductions, kept = tuple(rec.reductions), tuple(rec.kept.items())
    return Program(NAME, reductions=reductions, weight=weight, kept=kept)


def _guarded_softmax(s: Value, row: Value) -> Value:
    """Softmax with weights 0 where all scores of a row are -inf; its backward walks over the keys more often."""
    m = row.max(s)
    m = where(m == -math.inf, 0.0, m)
    e = exp(s - m)
    total = row.sum(e)
    safe = where(total == 0, 1.0, total)
    row.keep("lse", where(total == 0, -math.inf, log(safe) + m))
    return e / safe


def _finite(score: Expr, infinity: float) -> tuple[Expr, Expr]:
    """A score, and the condition under which the first is the given one; elsewhere the given one is ``infinity``.

    ``where(c, x, infinity)`` is x under c. A term of a sum that does not depend on the dot product and may be infinite,
    such as an element of an additive mask, must be another number. What is left of infinities stays in the score.
    """
    true: Expr = Const(True)
    match score:
        case Call("where", (c, x, Const(value))) if value == infinity and not _reads_dot(c):
            inner, finite = _finite(x, infinity)
            return inner, make("and", c, finite)
        case Call("where", (c, Const(value), x)) if value == infinity and not _reads_dot(c):
            inner, finite = _finite(x, infinity)
            return inner, make("and", make("not", c), finite)
        case Call("add" | "sub" as op, (x, y)):
            left, first = _finite(x, infinity)
            right, second = _finite(y, infinity if op == "add" else -infinity)
            if first is true and second is true:
                return score, true
            return make(op, left, right), make("and", first, second)
        case _ if not _reads_dot(score) and _may_be_infinite(score):
            return score, make("ne", score, Const(infinity))
        case _:
            return score, true


def _reads_dot(expr: Expr) -> bool:
    return any(isinstance(n, Dot) for n in walk(expr))


def _may_be_infinite(term: Expr) -> bool:
    """Whether a term holds an infinity itself, or reads a tensor by the key."""
    return any(
        (isinstance(n, Const) and n.value in (math.inf, -math.inf))
        or (isinstance(n, Load) and n.kind == "float" and "k" in axes_of(n))
        for n in walk(term)
    )
