"""Gradient: what the backward of a program computes, derived by ``ir/passes/differentiate.py``.

Given, for every row (b, h, q): the gradient of its output elements (``OutGrad``), the gradients of its kept
statistics, the final values of the forward's statistics (``saved``), and, where ``reads_value``, the output row
o before the epilogue (``Value``). The backward then computes, in this order::

    features   ordered reductions over the value features d; bodies read OutGrad, Value, Index d and row statistics
    go_d       = value_grad                                          the gradient of o_d
    dw_k       = sum_d go_d * value_kd                               WeightGrad, for each allowed key
    stages     for each stage: its row formulas, then its reductions over the allowed keys, all in one walk;
               bodies read Dot, Score, WeightGrad and every row statistic known before the stage

and in the walk of the last stage, which has no other reductions than sums::

    dq_i      += dot_scale * dot_factor * scale * sum_k dot_grad_ik * key_k
    dk_k      += dot_scale * dot_factor * scale * sum_i dot_grad_ik * query_i
    dv_k      += sum_i weight_ik * go_i
    tensors    see ``TensorGradient``

Row formulas and reductions give row statistics, read as ``Stat(name)``; no two share a name. A row without an
allowed key contributes to nothing but the tensor gradients that come from the epilogue. ``dot_scale`` is a number
that was a factor of every ``dot_grad`` (the logarithm of 2 where weights are powers of 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attncompiler.ir.expr import Expr
from attncompiler.ir.program import Program, Reduction

Level = Literal["element", "epilogue", "row", "key", "pair"]


@dataclass(frozen=True, slots=True)
class TensorGradient:
    """``gradient of tensor[indices] += value``, summed over all points of a level.

    ``element``: every (row, d), also of rows without a key; ``epilogue``: every row, also those without a key;
    ``row``: every row that met a key, after the last stage, so ``value`` may read its sums; ``key``: every
    allowed pair, with indices that do not depend on the query; ``pair``: every allowed pair.
    """

    tensor: str
    indices: tuple[Expr, ...]
    value: Expr
    level: Level


@dataclass(frozen=True, slots=True)
class Stage:
    """Row formulas, evaluated in order once a row, then reductions over the allowed keys in one walk.

    A reduction never reads another one of its own stage.
    """

    rows: tuple[tuple[str, Expr], ...]
    reductions: tuple[Reduction, ...]


@dataclass(frozen=True, slots=True)
class Gradient:
    """See the module's text. ``kept`` gives the row statistic that holds the gradient of each kept statistic."""

    program: Program
    saved: tuple[str, ...]
    kept: tuple[tuple[str, str], ...]
    reads_value: bool
    features: tuple[Reduction, ...]
    value_grad: Expr
    stages: tuple[Stage, ...]
    weight: Expr
    dot_grad: Expr
    tensors: tuple[TensorGradient, ...]
    dot_scale: float = 1.0
    reasons: tuple[str, ...] = ()
