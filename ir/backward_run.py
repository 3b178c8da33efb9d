"""Turns a Backward and tensors into gradients, loop by loop on torch: the meaning of the nest in ``ir/backward.py``.

Nothing here knows more than generated code does: captured tensors and their gradient buffers are flat storage,
reached at the offsets the loops compute (an offset outside is an error), and tiles are skipped or left unmasked by
the classification that the loops use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from attncompiler.ir.backward import Backward, BackwardPass, Scatter, step
from attncompiler.ir.expr import Dot, Expr, Index, OutGrad, Param, Score, Stat, Value, WeightGrad
from attncompiler.ir.gradient_run import Gradients
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.kernel import Let, extent
from attncompiler.ir.kernel_block import reduce_rows, tile_starts
from attncompiler.ir.kernel_run import flat_storage, row_blocks, scalar_arguments
from attncompiler.ir.streaming import IDENTITY
from attncompiler.ir.tiles import CORNERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Number = float | int | bool
Leaves = dict[Expr, "Tensor"]


@dataclass(slots=True)
class _Rows:
    """One block of rows: row values are [R, 1], elements [R, T], features [R, Dv]."""

    query: Tensor
    out_grad: Tensor
    value_row: Tensor
    leaves: Leaves
    corners: Leaves
    value_grad: Tensor
    seen: Tensor
    query_grad: Tensor


@dataclass(slots=True)
class _Run:
    backward: Backward
    scale: float
    storage: Mapping[str, Tensor]
    grads: Mapping[str, Tensor]
    dtype: torch.dtype
    tile: int
    key: Tensor
    value: Tensor
    key_grad: Tensor
    value_sum: Tensor
    empty: Mapping[str, bool] = field(default_factory=dict)

    def of(self, expr: Expr, leaves: Mapping[Expr, Tensor]) -> Tensor:
        return evaluate(expr, leaves, self._load, self.dtype)

    def define(self, lets: Iterable[Let], leaves: Leaves) -> None:
        for let in lets:
            leaves[let.local] = self.of(let.expr, leaves)

    def _load(self, name: str, indices: tuple[Tensor, ...]) -> Tensor:
        (offset,) = indices
        storage = self.storage[name]
        if offset.numel() and not 0 <= int(offset.min()) <= int(offset.max()) < len(storage):
            raise IndexError(f"the backward reads {name} outside its storage")
        element = storage[offset]
        return element.to(self.dtype) if element.is_floating_point() else element

    def scatter(
        self, found: Sequence[Scatter], leaves: Mapping[Expr, Tensor], where: Tensor
    ) -> None:
        """Add at every point of ``where``."""
        import torch

        for s in found:
            if self.empty.get(s.tensor):
                continue
            offset = self.of(s.offset, leaves).expand(where.shape)
            value = torch.where(where, self.of(s.value, leaves).expand(where.shape), 0.0)
            target = self.grads[s.tensor]
            if where.any() and not 0 <= int(offset.min()) <= int(offset.max()) < len(target):
                raise IndexError(
                    f"the backward writes the gradient of {s.tensor} outside its storage"
                )
            target.index_put_((offset,), value, accumulate=True)

    def block(self, rows: _Rows) -> None:
        """One block of rows of one key/value head."""
        import torch

        self.define(self.backward.uniform, rows.leaves)
        self._start(rows)
        for kernel_pass in self.backward.passes:
            for name, formula in kernel_pass.stats:
                rows.leaves[Stat(name)] = self.of(formula, rows.leaves)
            self.define(kernel_pass.rows, rows.leaves)
            totals = {
                u.name: torch.full((len(rows.query), 1), IDENTITY[u.op], dtype=self.dtype)
                for u in kernel_pass.sums
            }
            outside = partial(self.of, leaves=rows.corners)
            for k0 in tile_starts(self.backward.ranges, len(self.key), self.tile, outside):
                self._tile(rows, kernel_pass, k0, min(k0 + self.tile, len(self.key)), totals)
            rows.leaves |= {Stat(name): total for name, total in totals.items()}
        self.define(self.backward.finish, rows.leaves)
        self.scatter(self.backward.row_grads, rows.leaves, rows.seen)

    def _start(self, rows: _Rows) -> None:
        import torch

        start, features = self.backward.start, rows.out_grad.shape[-1]
        shape = (len(rows.query), features)
        self.define(start.rows, rows.leaves)
        inner = rows.leaves | {
            OutGrad(): rows.out_grad,
            Value(): rows.value_row,
            Index("d"): torch.arange(features),
        }
        for r in start.reductions:
            identity = torch.full((shape[0], 1), IDENTITY[r.op], dtype=self.dtype)
            body = self.of(r.body, inner).expand(shape)
            inner[Stat(r.name)] = rows.leaves[Stat(r.name)] = reduce_rows(r.op, identity, body)
        rows.value_grad = self.of(start.value_grad, inner).expand(shape)
        self.scatter(start.elements, inner, torch.ones(shape, dtype=torch.bool))
        self.scatter(start.epilogue, rows.leaves, torch.ones((shape[0], 1), dtype=torch.bool))

    def _tile(
        self, rows: _Rows, kernel_pass: BackwardPass, k0: int, end: int, totals: dict[str, Tensor]
    ) -> None:
        import torch

        corners = rows.corners | {
            CORNERS["k"][0]: torch.tensor(k0),
            CORNERS["k"][1]: torch.tensor(end - 1),
        }
        if not bool(self.of(self.backward.possible, corners)):
            return
        full = bool(self.of(self.backward.certain, corners))
        keys, values = self.key[k0:end], self.value[k0:end]
        leaves = rows.leaves | {Index("k"): torch.arange(k0, end)}
        self.define(kernel_pass.keys, leaves)
        leaves[Dot()] = rows.query @ keys.T * self.scale
        leaves[Score()] = self.of(kernel_pass.score, leaves)
        leaves[WeightGrad()] = rows.value_grad @ values.T
        shape = (len(rows.query), end - k0)
        allowed = torch.ones(shape, dtype=torch.bool)
        if kernel_pass.mask is not None and not full:
            allowed = self.of(kernel_pass.mask, leaves).expand(shape)
        rows.seen = rows.seen | allowed.any(-1, keepdim=True)
        for update in kernel_pass.sums:
            terms = torch.where(allowed, self.of(update.body, leaves), IDENTITY[update.op])
            totals[update.name] = reduce_rows(update.op, totals[update.name], terms)
        if kernel_pass.weight is not None:
            weight = torch.where(allowed, self.of(kernel_pass.weight, leaves), 0.0)
            self.value_sum[k0:end] += weight.T @ torch.where(rows.seen, rows.value_grad, 0.0)
        if kernel_pass.dot_grad is not None:
            dots = torch.where(allowed, self.of(kernel_pass.dot_grad, leaves), 0.0)
            dots = dots * (self.scale * self.backward.gradient.dot_scale)
            self.key_grad[k0:end] += dots.T @ rows.query
            rows.query_grad += dots @ keys
        self.scatter(kernel_pass.key_grads, leaves, allowed)
        self.scatter(kernel_pass.pair_grads, leaves, allowed)


def run_backward(
    backward: Backward,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out_grad: Tensor,
    *,
    value: Tensor,
    saved: Mapping[str, Tensor],
    kept_grads: Mapping[str, Tensor] | None = None,
    q_start: int = 0,
    scale: float = 1.0,
    params: Mapping[str, Number] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    block: int = 16,
    tile: int = 64,
    dtype: torch.dtype | None = None,
) -> Gradients:
    """The gradients, from what the forward saved: ``value`` [B, H, M, Dv] and statistics [B, H, M] by name.

    q is [B, H, M, D], k [B, G, N, D], v [B, G, N, Dv], ``out_grad`` [B, H, M, Dv], ``kept_grads`` [B, H, M] (0 where
    missing). ``block`` rows are worked on together, ``tile`` keys at a time. ``dtype`` is the type of all arithmetic,
    float64 unless given. Raises IndexError for an access outside a tensor.
    """
    import torch

    real = dtype or torch.float64
    q, k, v, out_grad, value = (x.to(real) for x in (q, k, v, out_grad, value))
    captured = {t.name: (tensors or {})[t.name] for t in backward.tensors}
    names = [t.name for t in backward.grads]
    buffers = {n: torch.zeros((tensors or {})[n].shape, dtype=real) for n in names}
    uniform = scalar_arguments(backward.params, q, v, q_start, params or {}, captured, real)
    for name, buffer in buffers.items():
        for axis in range(buffer.dim()):
            uniform[Param(step(name, axis), "int")] = torch.tensor(buffer.stride(axis))
            uniform[Param(extent(name, axis), "int")] = torch.tensor(buffer.shape[axis])
    gradient = backward.gradient
    scale = scale * gradient.program.dot_factor
    grads = [torch.zeros_like(x) for x in (q, k, v)]
    for i_b, i_g, i_h, i_m, leaves, corners in row_blocks(
        q, v, q_start, backward.packs_heads, block
    ):
        run = _Run(
            backward,
            scale,
            {name: flat_storage(t) for name, t in captured.items()},
            {name: b.view(-1) for name, b in buffers.items()},
            real,
            tile,
            k[i_b, i_g],
            v[i_b, i_g],
            grads[1][i_b, i_g],
            grads[2][i_b, i_g],
            {name: b.numel() == 0 for name, b in buffers.items()},
        )
        leaves = uniform | leaves
        for name in gradient.saved:
            leaves[Stat(name)] = saved[name][i_b, i_h, i_m][:, None].to(real)
        for name, stat in gradient.kept:
            given = (kept_grads or {}).get(name)
            zero = q.new_zeros(len(i_h), 1)
            leaves[Stat(stat)] = zero if given is None else given[i_b, i_h, i_m][:, None].to(real)
        rows = _Rows(
            query=q[i_b, i_h, i_m],
            out_grad=out_grad[i_b, i_h, i_m],
            value_row=value[i_b, i_h, i_m],
            leaves=leaves,
            corners=uniform | corners,
            value_grad=out_grad[i_b, i_h, i_m],
            seen=torch.zeros(len(i_h), 1, dtype=torch.bool),
            query_grad=torch.zeros_like(q[i_b, i_h, i_m]),
        )
        run.block(rows)
        grads[0][i_b, i_h, i_m] = rows.query_grad
    return Gradients(grads[0], grads[1], grads[2], buffers)
