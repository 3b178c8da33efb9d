"""Turns a Kernel and tensors into an output, loop by loop on torch: the meaning of the nest in ``ir/kernel.py``.

Nothing here knows more than generated code does. Captured tensors are flat storage read at the offsets the kernel
computes (an offset outside the storage is an error), tiles are skipped or left unmasked by the kernel's own
classification, and every value is computed in the loop that the kernel names. ``kernel_block.py`` runs a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from attncompiler.ir.expr import Index, Param, Size, SizeName
from attncompiler.ir.kernel import Kernel, extent, stride
from attncompiler.ir.kernel_block import Block, Leaves, Run
from attncompiler.ir.program import ParamDecl
from attncompiler.ir.tiles import CORNERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Number = float | int | bool


def flat_storage(tensor: Tensor) -> Tensor:
    """The storage a tensor's strides reach, from its first element; one zero for an empty tensor."""
    if tensor.numel() == 0:
        return tensor.new_zeros(1)
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((span,), (1,))


def scalar_arguments(
    declared: Sequence[ParamDecl],
    query: Tensor,
    value: Tensor,
    q_start: int,
    params: Mapping[str, Number],
    captured: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Leaves:
    """The scalars of a call: sizes, parameters, strides and extents."""
    import torch

    (b, h, m, d), (_, g, n, dv) = query.shape, value.shape
    sizes: dict[SizeName, int] = {"B": b, "H": h, "G": g, "M": m, "N": n, "D": d, "Dv": dv}
    leaves: Leaves = {Size(s): torch.tensor(x) for s, x in sizes.items()}
    leaves[Param("q_start", "int")] = torch.tensor(q_start)
    kinds = {"float": dtype, "int": torch.int64, "bool": torch.bool}
    for p in declared:
        leaves[Param(p.name, p.kind)] = torch.tensor(params[p.name], dtype=kinds[p.kind])
    for name, t in captured.items():
        for axis in range(t.ndim):
            step = t.stride(axis) if t.numel() else 0
            leaves[Param(stride(name, axis), "int")] = torch.tensor(step)
            leaves[Param(extent(name, axis), "int")] = torch.tensor(t.shape[axis])
    return leaves


def run_kernel(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    q_start: int = 0,
    scale: float = 1.0,
    params: Mapping[str, Number] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    block: int = 16,
    tile: int = 64,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output [B, H, M, Dv] and kept statistics [B, H, M] of a kernel.

    ``query`` is [B, H, M, D], ``key`` [B, G, N, D], ``value`` [B, G, N, Dv]. ``block`` is the number of rows of a
    block (of several heads where the kernel allows it) and ``tile`` the number of keys of a tile. ``dtype`` is the
    type of all arithmetic, float64 unless given. Raises KeyError for a missing parameter or tensor, IndexError
    when the kernel would read outside a captured tensor.
    """
    import torch

    real = dtype or torch.float64
    query, key, value = query.to(real), key.to(real), value.to(real)
    (b, h, m, _), dv = query.shape, value.shape[-1]
    captured = {t.name: (tensors or {})[t.name] for t in kernel.tensors}
    storage = {name: flat_storage(t) for name, t in captured.items()}
    run = Run(kernel, scale * kernel.plan.program.dot_factor, storage, real, tile)
    uniform = scalar_arguments(kernel.params, query, value, q_start, params or {}, captured, real)
    out = query.new_empty(b, h, m, dv)
    kept = {name: query.new_empty(b, h, m) for name, _ in kernel.finish.kept}
    for i_b, i_g, i_h, i_m, leaves, corners in row_blocks(
        query, value, q_start, kernel.packs_heads, block
    ):
        state = Block(
            query[i_b, i_h, i_m],
            key[i_b, i_g],
            value[i_b, i_g],
            uniform | leaves,
            uniform | corners,
            torch.zeros(len(i_h), 1, dtype=torch.bool),
        )
        run.block(state)
        out[i_b, i_h, i_m], stats = run.finish(state)
        for name, stat in stats.items():
            kept[name][i_b, i_h, i_m] = stat
    return out, kept


def row_blocks(
    query: Tensor, value: Tensor, q_start: int, packs_heads: bool, block: int
) -> Iterator[tuple[int, int, Tensor, Tensor, Leaves, Leaves]]:
    """Blocks of rows: batch, key/value head, heads and queries of the rows, their indices, the corners of their box."""
    import torch

    (batches, heads, queries, _), groups = query.shape, value.shape[1]
    group = heads // max(groups, 1)
    together = group if packs_heads else 1
    for i_b in range(batches):
        for first in range(0, heads, max(together, 1)):
            i_g = first // group
            pairs = torch.cartesian_prod(
                torch.arange(first, first + together), torch.arange(queries)
            ).view(-1, 2)
            for start in range(0, len(pairs), block):
                i_h, i_m = pairs[start : start + block].unbind(1)
                i_q = i_m + q_start
                fixed: Leaves = {Index("b"): torch.tensor(i_b), Index("g"): torch.tensor(i_g)}
                corners = dict(fixed)
                for axis, x in (("h", i_h), ("q", i_q)):
                    corners |= {CORNERS[axis][0]: x.min(), CORNERS[axis][1]: x.max()}
                leaves = fixed | {Index("h"): i_h[:, None], Index("q"): i_q[:, None]}
                yield i_b, i_g, i_h, i_m, leaves, corners
