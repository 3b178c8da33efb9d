"""Turns a Program and input tensors into its output by definition: all pairs of query and key at once.

The reference for passes and plans at their own level (``oracle.py`` is the reference for
variants). It takes memory for all pairs; nothing but tests and explanations calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attncompiler.ir.expr import Dot, Expr, Index, Param, Score, Size, Stat, Value
from attncompiler.ir.interpreter import Loader, evaluate
from attncompiler.ir.program import Program, Reduction
from attncompiler.ir.streaming import IDENTITY

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def run_program(
    program: Program,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_start: int = 0,
    scale: float | None = None,
    params: Mapping[str, float | int | bool] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The output [B, H, M, Dv] and the kept statistics, each [B, H, M].

    q is [B, H, M, D], k [B, G, N, D], v [B, G, N, Dv] with H a multiple of G. ``scale`` is 1/sqrt(D) unless
    given. Everything is computed in ``dtype``, float64 unless given. Indices of loads are clamped into the
    tensor; a negative constant index counts from the end. Raises KeyError for a missing parameter or tensor.
    """
    import torch

    real = torch.float64 if dtype is None else dtype
    q, k, v = q.to(real), k.to(real), v.to(real)
    (batch, heads, rows, width), (_, groups, keys, _) = q.shape, k.shape
    captured = {
        name: t.to(real) if t.is_floating_point() else t for name, t in (tensors or {}).items()
    }

    def values(expr: Expr, leaves: dict[Expr, Tensor], extent: int) -> Tensor:
        return evaluate(expr, leaves, clamped_loader(captured), real).expand(
            batch, heads, rows, extent
        )

    base = index_leaves(q, k, v, q_start)
    for name, value in (params or {}).items():
        base |= parameter_leaves(name, value, real)
    pairs = dict(base)
    factor = program.dot_factor * (width**-0.5 if scale is None else scale)
    shared = heads // max(groups, 1)
    pairs[Dot()] = factor * q @ k.repeat_interleave(shared, 1).transpose(-1, -2)
    allowed = values(program.mask, pairs, keys)
    pairs[Score()] = values(program.score, pairs, keys)
    for r in program.reductions:
        found = _reduce(r, values(r.body, pairs, keys), allowed)
        pairs[Stat(r.name)] = base[Stat(r.name)] = found
    weight = torch.where(allowed, values(program.weight, pairs, keys), torch.zeros((), dtype=real))
    out = weight @ v.repeat_interleave(shared, 1)
    kept = {name: values(e, base, 1)[..., 0] for name, e in program.kept}
    base[Value()] = out.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    everywhere = torch.ones_like(out, dtype=torch.bool)
    for r in program.output_reductions:
        body = values(r.body, base, out.shape[-1])
        base[Stat(r.name)] = _reduce(r, body, everywhere)
    return values(program.output, base, out.shape[-1]), kept


def index_leaves(q: Tensor, k: Tensor, v: Tensor, q_start: int) -> dict[Expr, Tensor]:
    """Values of the indices and sizes, broadcasting over [B, H, M, N] (the last axis is that of d for d)."""
    import torch

    (batch, heads, rows, width), (_, groups, keys, _) = q.shape, k.shape
    head = torch.arange(heads)[:, None, None]
    return {
        Index("b"): torch.arange(batch)[:, None, None, None],
        Index("h"): head,
        Index("g"): head // max(heads // max(groups, 1), 1),
        Index("q"): torch.arange(rows)[:, None] + q_start,
        Index("k"): torch.arange(keys),
        Param("q_start", "int"): torch.tensor(q_start),
        Index("d"): torch.arange(v.shape[-1]),
        Size("B"): torch.tensor(batch),
        Size("H"): torch.tensor(heads),
        Size("G"): torch.tensor(groups),
        Size("M"): torch.tensor(rows),
        Size("N"): torch.tensor(keys),
        Size("D"): torch.tensor(width),
        Size("Dv"): torch.tensor(v.shape[-1]),
    }


def parameter_leaves(name: str, value: float | int | bool, real: torch.dtype) -> dict[Expr, Tensor]:
    """A value for each kind that the parameter may have been declared with."""
    import torch

    found: dict[Expr, Tensor] = {Param(name, "float"): torch.tensor(float(value), dtype=real)}
    if not isinstance(value, float):
        found[Param(name, "int")] = torch.tensor(int(value))
        found[Param(name, "bool")] = torch.tensor(bool(value))
    return found


def clamped_loader(tensors: Mapping[str, Tensor]) -> Loader:
    """Reads elements; indices are moved into the tensor, a negative constant one counts from the end."""

    def load(name: str, indices: tuple[Tensor, ...]) -> Tensor:
        tensor = tensors[name]
        if not indices:
            return tensor
        inside = []
        for index, extent in zip(indices, tensor.shape, strict=True):
            from_end = index.dim() == 0 and index < 0
            inside.append((index + extent if from_end else index).clamp(0, extent - 1))
        return tensor[tuple(inside)]

    return load


def _reduce(reduction: Reduction, body: Tensor, allowed: Tensor) -> Tensor:
    """Over the last axis, which stays with extent 1."""
    import torch

    identity = torch.full((), IDENTITY[reduction.op], dtype=body.dtype)
    inside = torch.where(allowed, body, identity)
    if reduction.op == "sum":
        return inside.sum(-1, keepdim=True)
    # One more element keeps a reduction over no keys defined.
    padded = torch.cat([inside, identity.expand(*inside.shape[:-1], 1)], -1)
    return padded.amax(-1, keepdim=True) if reduction.op == "max" else padded.amin(-1, keepdim=True)
