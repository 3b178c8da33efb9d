"""Scores and masks of traced bodies: turns them into the Program of a softmax over the allowed keys."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from attncompiler.flex_bodies import NAME, Bodies
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
    score, finite = _finite(bodies.score)
    mask = make("and", mask, finite)
    rec = bodies.recorder
    plain = _softmax(max_scores)
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
def _softmax(max_scores: bool) -> Program:
    rec = Recorder(_softmax.__wrapped__.__code__)
    row, score = Row(rec), Symbol(Score(), rec)
    weight = softmax(score, row).expr
    if max_scores:
        row.keep("max_scores", row.max(score))
    reductions, kept = tuple(rec.reductions), tuple(rec.kept.items())
    return Program(NAME, reductions=reductions, weight=weight, kept=kept)


def _finite(score: Expr) -> tuple[Expr, Expr]:
    """A score, and the condition under which the first is the given one; elsewhere the given one is -inf.

    ``where(c, x, -inf)`` is x under c. A term of a sum that does not depend on the dot product and may be -inf, such as
    an element of an additive mask, must be another number.
    """
    true: Expr = Const(True)
    match score:
        case Call("where", (c, x, Const(value))) if value == -math.inf:
            inner, finite = _finite(x)
            return inner, make("and", c, finite)
        case Call("where", (c, Const(value), x)) if value == -math.inf:
            inner, finite = _finite(x)
            return inner, make("and", make("not", c), finite)
        case Call("add", (x, y)):
            (left, first), (right, second) = _finite(x), _finite(y)
            if first is true and second is true:
                return score, true
            return make("add", left, right), make("and", first, second)
        case _ if _may_be_minus_infinity(score):
            return score, make("ne", score, Const(-math.inf))
        case _:
            return score, true


def _may_be_minus_infinity(term: Expr) -> bool:
    """Whether a term holds -inf itself, or reads a tensor by the key; no term that depends on the dot product does."""
    nodes = list(walk(term))
    if any(isinstance(n, Dot) for n in nodes):
        return False
    return any(
        (isinstance(n, Const) and n.value == -math.inf)
        or (isinstance(n, Load) and n.kind == "float" and "k" in axes_of(n))
        for n in nodes
    )
