"""Turns a Gradient and input tensors into gradients by definition, all pairs at once: the meaning of a Gradient.

Like ``ir/dense.py`` it takes memory for all pairs; nothing but tests and explanations calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from attncompiler.ir.dense import clamped_loader, index_leaves, parameter_leaves
from attncompiler.ir.expr import Const, Dot, Expr, OutGrad, Score, Stat, Value, WeightGrad
from attncompiler.ir.gradient import Gradient, TensorGradient
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.program import Reduction
from attncompiler.ir.streaming import IDENTITY

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Gradients(NamedTuple):
    """Gradients of q, k, v (in their shapes) and of the captured floating tensors, by name."""

    q: Tensor
    k: Tensor
    v: Tensor
    tensors: dict[str, Tensor]


def run_gradient(
    gradient: Gradient,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out_grad: Tensor,
    *,
    kept_grads: Mapping[str, Tensor] | None = None,
    q_start: int = 0,
    scale: float | None = None,
    params: Mapping[str, float | int | bool] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Gradients:
    """The gradients of sum(out * out_grad) + sum over kept statistics of sum(stat * its gradient).

    q is [B, H, M, D], k [B, G, N, D], v [B, G, N, Dv], ``out_grad`` [B, H, M, Dv], each of ``kept_grads`` [B, H, M]
    (0 where a statistic is missing). The rest is as in ``ir.dense.run_program``.
    """
    import torch

    program = gradient.program
    real = dtype or torch.float64
    q, k, v, out_grad = q.to(real), k.to(real), v.to(real), out_grad.to(real)
    batch, heads, rows, width = q.shape
    _, groups, keys, features = v.shape
    shared = heads // max(groups, 1)
    captured = {
        name: t.to(real) if t.is_floating_point() else t for name, t in (tensors or {}).items()
    }

    def values(expr: Expr, leaves: Mapping[Expr, Tensor], extent: int) -> Tensor:
        found = evaluate(expr, leaves, clamped_loader(captured), real)
        return found.expand(batch, heads, rows, extent)

    row = index_leaves(q, k, v, q_start)
    for name, value in (params or {}).items():
        row |= parameter_leaves(name, value, real)
    factor = program.dot_factor * (width**-0.5 if scale is None else scale)
    wide_k, wide_v = (x.repeat_interleave(shared, 1) for x in (k, v))
    pair: dict[Expr, Tensor] = {Dot(): factor * q @ wide_k.transpose(-1, -2)}
    allowed = values(program.mask, row | pair, keys)
    pair[Score()] = values(program.score, row | pair, keys)
    for r in program.reductions:
        row[Stat(r.name)] = _reduced(r, values(r.body, row | pair, keys), allowed)
    seen = allowed.any(-1, keepdim=True)
    weight = torch.where(allowed, values(program.weight, row | pair, keys), 0.0)
    for name, stat in gradient.kept:
        given = (kept_grads or {}).get(name)
        row[Stat(stat)] = torch.zeros_like(q[..., :1]) if given is None else given[..., None]
    element: dict[Expr, Tensor] = {
        OutGrad(): out_grad,
        Value(): torch.where(seen, weight @ wide_v, 0.0),
    }
    everywhere = torch.ones_like(out_grad, dtype=torch.bool)
    for r in gradient.features:
        row[Stat(r.name)] = _reduced(r, values(r.body, row | element, features), everywhere)
    value_grad = torch.where(seen, values(gradient.value_grad, row | element, features), 0.0)
    pair[WeightGrad()] = value_grad @ wide_v.transpose(-1, -2)
    for stage in gradient.stages:
        for name, formula in stage.rows:
            row[Stat(name)] = values(formula, row, 1)
        for r in stage.reductions:
            row[Stat(r.name)] = _reduced(r, values(r.body, row | pair, keys), allowed)
    weight = torch.where(allowed, values(gradient.weight, row | pair, keys), 0.0)
    dot_grad = (
        gradient.dot_scale
        * factor
        * torch.where(allowed, values(gradient.dot_grad, row | pair, keys), 0.0)
    )

    def by_group(x: Tensor) -> Tensor:
        return x.reshape(batch, groups, shared, *x.shape[2:]).sum(2)

    found = {name: torch.zeros_like(t) for name, t in captured.items() if t.is_floating_point()}
    points = {
        "element": (row | element, features, everywhere),
        "epilogue": (row, 1, torch.ones_like(seen)),
        "row": (row, 1, seen),
        "key": (row | pair, keys, allowed),
        "pair": (row | pair, keys, allowed),
    }
    for t in gradient.tensors:
        leaves, extent, where = points[t.level]
        terms = torch.where(where, values(t.value, leaves, extent), 0.0)
        indices = [values(i, leaves, extent) for i in t.indices]
        _scatter(t, found[t.tensor], indices, terms)
    return Gradients(
        q=dot_grad @ wide_k,
        k=by_group(dot_grad.transpose(-1, -2) @ q),
        v=by_group(weight.transpose(-1, -2) @ value_grad),
        tensors=found,
    )


def _scatter(where: TensorGradient, target: Tensor, indices: list[Tensor], value: Tensor) -> None:
    if not indices:
        target += value.sum()
        return
    places = []
    for index, formula, extent in zip(indices, where.indices, target.shape, strict=True):
        from_end = isinstance(formula, Const) and formula.value < 0
        places.append((index + extent if from_end else index).clamp(0, extent - 1))
    target.index_put_(tuple(places), value, accumulate=True)


def _reduced(reduction: Reduction, body: Tensor, allowed: Tensor) -> Tensor:
    """Over the last axis, which stays with extent 1."""
    import torch

    identity = torch.full((), IDENTITY[reduction.op], dtype=body.dtype)
    inside = torch.where(allowed, body, identity)
    if reduction.op == "sum":
        return inside.sum(-1, keepdim=True)
    padded = torch.cat([inside, identity.expand(*inside.shape[:-1], 1)], -1)
    return padded.amax(-1, keepdim=True) if reduction.op == "max" else padded.amin(-1, keepdim=True)
