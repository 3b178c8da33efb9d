"""Launches generated Triton backward kernels, and turns sums of whole numbers into the gradients of captured tensors.

Programs finish in any order, so floats that are added up as they come differ in their last bits from run to run. The
gradient of a tensor that many programs add to is therefore summed in 64-bit integers: a first run of the kernels finds
the largest term, a second one adds multiples of a small part of it. A tensor of which every element receives one number
needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attncompiler.backends.tile_config import summed_width
from attncompiler.runtime.backward_plan import Gradients
from attncompiler.runtime.tile_tables import readable
from attncompiler.runtime.triton_launch import (
    NO_LISTS,
    Run,
    TileLists,
    Tiling,
    block_options,
    captured_arguments,
    is_long,
    numbers,
    of_tilelang,
    on_device,
    precision_of,
    programs,
    strides,
    width_of,
)

FLOATS, MEASURE, WHOLE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class GradientSignature:
    """A captured tensor that receives a gradient: its name in the kernel and in the call, its rank; see the context."""

    argument: str
    name: str
    rank: int
    read: bool
    stored: bool
    by_columns: bool


@dataclass(frozen=True, slots=True)
class BackwardSignature:
    """What a backward takes: numbers, tensors, saved statistics and gradients of kept ones, tensors to give gradients.

    ``saved`` and ``kept`` pair the name of the call with that of the kernel's argument. ``handed`` are the values of
    rows that the first kernel leaves for the second.
    """

    params: tuple[tuple[str, str], ...]
    tensors: tuple[tuple[str, str, int], ...]
    saved: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]
    grads: tuple[GradientSignature, ...]
    handed: tuple[str, ...]
    reads_value: bool
    own_go: bool
    finds_extrema: bool = False


@dataclass(frozen=True, slots=True)
class Buffer:
    """Where a gradient is added up: floats, or whole numbers of ``2 ** -exponent`` and what is not finite."""

    stored: Tensor
    fixed: Tensor
    largest: Tensor
    factors: Tensor

    @classmethod
    def of(cls, x: Tensor, *, whole: bool) -> Buffer:
        """Zeros for the gradient of x."""

        def zeros(count: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(count, dtype=dtype, device=x.device)

        count = max(x.numel(), 1)
        return cls(
            zeros(count, torch.float32),
            zeros(count if whole else 1, torch.int64),
            zeros(1, torch.int32),
            zeros(2, torch.float32),
        )

    def scaled(self, terms: int) -> Tensor:
        """Choose the unit for at most ``terms`` terms of the measured size; the exponent, int32 [1], on the device."""
        _, above = torch.frexp(self.largest.view(torch.float32))
        exponent = 62 - terms.bit_length() - above
        half = exponent // 2
        one = torch.ones(1, device=self.largest.device)
        self.factors.copy_(torch.cat([torch.ldexp(one, half), torch.ldexp(one, exponent - half)]))
        return exponent

    def total(self, exponent: Tensor | None, like: Tensor) -> Tensor:
        """The gradient in the shape and type of ``like``."""
        found = self.stored
        if exponent is not None:
            found = torch.ldexp(self.fixed.double(), -exponent) + found
        return found[: like.numel()].view(like.shape).to(like.dtype)


def run_backward(
    launch: Run,
    module: ModuleType,
    signature: BackwardSignature,
    tilings: tuple[Tiling, Tiling],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out_grad: Tensor,
    *,
    value: Tensor | None,
    saved: Mapping[str, Tensor],
    kept_grads: Mapping[str, Tensor | None],
    tensors: Mapping[str, Tensor],
    params: Mapping[str, float],
    q_start: int,
    scale: float,
    lists: tuple[TileLists | None, TileLists | None],
    wants: tuple[bool, bool, bool] = (True, True, True),
    deterministic: bool = True,
    allow_tf32: bool = False,
) -> Gradients:
    """The gradients of q, k, v, as ``wants`` says, and of the signature's tensors, in their own dtypes.

    All checks have been made. What nobody wants is not computed.

    ``out_grad`` [B, H, M, Dv] in the dtype of q with a contiguous last axis; ``value`` [B, H, M, Dv], ``saved`` and
    ``kept_grads`` [B, H, M] float32 and contiguous. ``tilings`` and ``lists`` are those of the walks over keys and over
    queries.
    """
    batch, heads, queries, head_dim = q.shape
    groups, keys, value_dim = k.shape[1], k.shape[2], v.shape[3]
    dq, dk, dv = (
        torch.zeros_like(q, memory_format=torch.contiguous_format),
        *(torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (k, v)),
    )
    whole = {g.name: deterministic and not g.stored for g in signature.grads}
    buffers = {g.name: Buffer.of(tensors[g.name], whole=whole[g.name]) for g in signature.grads}

    def gradients(exponents: Mapping[str, Tensor]) -> Gradients:
        found = {n: b.total(exponents.get(n), tensors[n]) for n, b in buffers.items()}
        q_grad, k_grad, v_grad = (
            x if wanted else None for x, wanted in zip((dq, dk, dv), wants, strict=True)
        )
        return Gradients(q_grad, k_grad, v_grad, found)

    if 0 in (batch, heads, queries):
        return gradients({})
    go = out_grad.new_empty(out_grad.shape, dtype=q.dtype) if signature.own_go else out_grad
    handed = {name: q.new_empty(q.shape[:3], dtype=torch.float32) for name in signature.handed}
    known = {argument: saved[name] for name, argument in signature.saved}
    # In any order: the second kernel adds up dq as well, so that scores are computed once.
    fused = wants[0] and not deterministic
    sums = torch.zeros(q.shape, dtype=torch.float32, device=q.device) if fused else None
    captured = [readable(tensors[name]) for _, name, _ in signature.tensors]
    shared: dict[str, Any] = {
        "q_pointer": q, "k_pointer": k, "v_pointer": v,
        **strides(q=q, k=k, v=v),
        "B": batch, "H": heads, "G": groups, "M": queries, "N": keys,
        "q_start": q_start, "scale": scale,
        **numbers(signature.params, [params[name] for name, _ in signature.params]),
        **captured_arguments([(a, rank) for a, _, rank in signature.tensors], captured),
        **_gradient_arguments(signature.grads, buffers, tensors),
        "HEAD_DIM": head_dim, "VALUE_DIM": value_dim,
        "HEAD_WIDTH": width_of(head_dim), "VALUE_WIDTH": width_of(value_dim),
        "POSITIVE": scale > 0, "PRECISION": precision_of(q.dtype, allow_tf32),
        "LONG": is_long((q, k, v, out_grad, *captured)),
        # Fused multiply-adds would round the same formula differently in each kernel.
        "enable_fp_fusion": not signature.finds_extrema,
    }  # fmt: skip
    by_rows: dict[str, Any] = {
        **shared,
        "grad_pointer": out_grad, "value_pointer": value if signature.reads_value else None,
        "dq_pointer": dq, "go_pointer": go if signature.own_go else None,
        **{f"saved_{name}": x for name, x in known.items()},
        **{argument: kept_grads.get(name) for name, argument in signature.kept},
        **{f"handed_{name}": x for name, x in handed.items()},
        **strides(g=out_grad, d=dq),
        # Without its own walk for dq: the second kernel gives it, or nobody wants it.
        "FUSED": fused or not wants[0],
        **_tiled(tilings[0], lists[0], q), **of_tilelang(tilings[0], module), "REVERSED": module.REVERSED,
    }  # fmt: skip
    by_columns: dict[str, Any] = {
        **shared,
        "go_pointer": go, "dk_pointer": dk, "dv_pointer": dv, "dq_pointer": sums,
        **{f"from_{name}": x for name, x in handed.items()},
        **strides(g=go),
        "FUSED": fused,
        **_tiled(tilings[1], lists[1], q), **of_tilelang(tilings[1], module), "ALONE": heads == groups,
        **_widths(head_dim, value_dim, tilings[1]),
    }  # fmt: skip
    row_grid = programs(-(-queries // tilings[0].block_m), heads, batch)
    column_grid = programs(-(-keys // tilings[1].block_n), groups, batch)

    def run(phase: int, *, columns: bool) -> None:
        with on_device(q, workspace=any(t.descriptors for t in tilings)):
            launch("rows", module.rows[row_grid], **by_rows, PHASE=phase)
            if columns and keys and groups:
                launch("columns", module.columns[column_grid], **by_columns, PHASE=phase)

    exponents: dict[str, Tensor] = {}
    if any(whole.values()):
        late = any(g.by_columns and whole[g.name] for g in signature.grads)
        run(MEASURE, columns=late)
        terms = batch * heads * queries * max(keys, value_dim, 1)
        exponents = {name: b.scaled(terms) for name, b in buffers.items() if whole[name]}
    by_keys = wants[1] or wants[2] or fused or any(g.by_columns for g in signature.grads)
    run(WHOLE if deterministic else FLOATS, columns=by_keys)
    if sums is not None:
        dq.copy_(sums.mul_(scale * module.DOT_SCALE))
    return gradients(exponents)


def _widths(head_dim: int, value_dim: int, tiling: Tiling) -> dict[str, int]:
    """The widths of tiles in the kernel of the columns, where they are those of sums."""
    dims = {"HEAD_WIDTH": head_dim, "VALUE_WIDTH": value_dim}
    rows, chunk = tiling.block_n, tiling.chunk
    return {n: summed_width(width_of(d), "columns", rows, chunk) for n, d in dims.items()}


def _tiled(tiling: Tiling, lists: TileLists | None, q: Tensor) -> dict[str, Any]:
    return {
        **(NO_LISTS if lists is None else lists.arguments()),
        "BLOCK_M": tiling.block_m, "BLOCK_N": tiling.block_n, "CHUNK": tiling.chunk,
        "LISTED": lists is not None, "DESCRIPTORS": tiling.descriptors,
        **block_options(tiling),
    }  # fmt: skip


def _gradient_arguments(
    grads: Sequence[GradientSignature],
    buffers: Mapping[str, Buffer],
    tensors: Mapping[str, Tensor],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for g in grads:
        buffer, shape = buffers[g.name], tensors[g.name].shape
        for part in ("stored", "fixed", "largest", "factors"):
            found[f"{g.argument}_{part}"] = getattr(buffer, part)
        for axis in range(g.rank):
            found[f"{g.argument}_step{axis}"] = prod(shape[axis + 1 :])
            if not g.read:
                found[f"{g.argument}_extent{axis}"] = shape[axis]
    return found
