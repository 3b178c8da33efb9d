"""Turns the inputs of a backward into gradients: decides how work and buffers are shared out, launches, adds up.

Threads never add to the same place. A task takes a range of batches, a range of key/value heads and one part of the
rows of each of these problems. Gradients of keys and values have a copy for every part. The gradient of a captured
tensor needs a copy for every task that may add to the same element: none along an axis that all its reads index by the
batch, the head or the query itself. Where copies would take much memory, one task takes that whole range instead.
Everything is added in an order that depends on shapes and on the number of threads, never on their timing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from attncompiler.runtime.library import BackwardLibrary, GradientBuffer
from attncompiler.runtime.signature import BackwardSignature, Separation, real_of
from attncompiler.runtime.tile_tables import TileTable, readable

# Copies of a tensor's gradient may take this many bytes, or twice the gradient's own size if that is more.
COPIES_LIMIT = 16 * 2**20
# Rows that a block of the kernel holds, with the widest lanes of float32.
BLOCK_ROWS = 64
LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a backward is cut into tasks; see the module's text."""

    parts: int
    serial_b: bool
    serial_g: bool


@dataclass(frozen=True, slots=True)
class Gradients:
    """What a backward gives; None or missing where it was not wanted."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    tensors: dict[str, Tensor]


def run_backward(
    backward: BackwardSignature,
    library: BackwardLibrary,
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
    wants: tuple[bool, bool, bool] = (True, True, True),
    table: TileTable | None = None,
) -> Gradients:
    """The gradients of q, k and v (as ``wants`` says) and of every tensor in ``backward.grads``, in their own dtypes.

    ``q``, ``k``, ``v`` and ``tensors`` (by name) as the forward took them; ``out_grad`` [B, H, M, Dv] in the dtype of q
    with any strides; ``saved`` and ``kept_grads`` by name, [B, H, M] in the kernel's real type (float32, or float64),
    where a kept statistic without a gradient is None or missing. ``value`` is the forward's output where
    that serves, its buffer of the output row where it does not, else not read. ``scale``
    includes the program's ``dot_factor``; ``table`` says which tiles are empty and full. All checks
    have been made by the caller.
    """
    batch, heads, queries, head_dim = q.shape
    groups, keys, value_dim = k.shape[1], k.shape[2], v.shape[3]
    real = real_of(q.dtype)
    extents = {t.name: tuple(tensors[t.name].shape) for t in backward.grads}
    separations = {t.name: t.separation for t in backward.grads}
    sums = {t.name: torch.float64 if t.in_double else real for t in backward.grads}
    sharing = share_out(
        (batch, heads, groups, queries),
        [(separations[n], prod(extents[n]) * sums[n].itemsize) for n in extents],
        torch.get_num_threads(),
    )
    dq = torch.empty_like(q) if wants[0] else None
    dk, dv = (
        _zeros(sharing.parts, batch, groups, keys, dim, real=real) if wanted else None
        for wanted, dim in ((wants[1], head_dim), (wants[2], value_dim))
    )
    buffers = {
        n: _buffer(extents[n], copies(separations[n], sharing, batch, heads, groups), sums[n])
        for n in extents
    }
    library(
        q,
        k,
        v,
        _contiguous_rows(out_grad),
        value=value if backward.reads_value else None,
        dq=dq,
        dk=dk,
        dv=dv,
        q_start=q_start,
        parts=sharing.parts,
        serial=(sharing.serial_b, sharing.serial_g),
        scale=scale,
        params=[params[p.name] for p in backward.params],
        tensors=[readable(tensors[t.name]) for t in backward.tensors],
        saved=[saved[name].contiguous() for name in backward.saved],
        kept_grads=[_contiguous(kept_grads.get(name)) for name in backward.kept],
        grads=[buffers[t.name] for t in backward.grads],
        table=table,
    )
    return Gradients(
        q=dq,
        k=None if dk is None else _narrowed(_summed(dk), head_dim, k.dtype),
        v=None if dv is None else _narrowed(_summed(dv), value_dim, v.dtype),
        tensors={
            n: _summed(b.buffer)[: prod(extents[n])].view(extents[n]).to(tensors[n].dtype)
            for n, b in buffers.items()
        },
    )


# -- who may add where ---------------------------------------------------------------------------------------------


def copies(
    separate: Separation, sharing: Sharing, batch: int, heads: int, groups: int
) -> tuple[int, int, int]:
    """Copies of a tensor's gradient for batches, groups and parts of rows."""
    apart = separate.rows or (separate.rows_of_head and heads == groups)
    return (
        1 if separate.batches or sharing.serial_b else batch,
        1 if separate.groups or sharing.serial_g else groups,
        1 if apart else sharing.parts,
    )


def share_out(
    sizes: tuple[int, int, int, int], gradients: Sequence[tuple[Separation, int]], threads: int
) -> Sharing:
    """The first way to cut the work that keeps all threads busy and the copies of gradients small.

    ``sizes`` are B, H, G, M; ``gradients`` say for each tensor how it is separated and how many bytes its gradient
    takes. Without such a way, the one that keeps the most threads busy.
    """
    batch, heads, groups, queries = sizes
    if threads == 1:
        return Sharing(1, True, True)
    blocks = max(1, -(-queries * heads // max(groups, 1) // BLOCK_ROWS))
    best, most = Sharing(1, True, True), 1
    for serial_b, serial_g in ((False, False), (True, False), (False, True), (True, True)):
        problems = (1 if serial_b else batch) * (1 if serial_g else groups)
        for parts in dict.fromkeys((min(_parts(problems, threads), blocks), 1)):
            sharing = Sharing(parts, serial_b, serial_g)
            small = all(
                (count := prod(copies(separate, sharing, batch, heads, groups))) == 1
                or (count - 1) * size <= max(COPIES_LIMIT, 2 * size)
                for separate, size in gradients
            )
            busy = min(problems * parts, threads)
            if small and busy > most:
                best, most = sharing, busy
            if small and busy == threads:
                return sharing
    return best


def _parts(problems: int, threads: int) -> int:
    """The fewest parts of each problem that share out evenly, or into so many tasks that it does not matter."""
    for parts in range(1, threads + 1):
        tasks = max(problems, 1) * parts
        if tasks >= 4 * threads or tasks % threads == 0:
            return parts
    return threads


# -- buffers -------------------------------------------------------------------------------------------------------


def _zeros(parts: int, *shape: int, real: torch.dtype) -> Tensor:
    """Copies of a gradient whose last axis is padded to whole cache lines."""
    line = LINE_BYTES // real.itemsize
    return torch.zeros((parts, *shape[:-1], -(-shape[-1] // line) * line), dtype=real)


def _buffer(
    extents: tuple[int, ...], counts: tuple[int, int, int], dtype: torch.dtype
) -> GradientBuffer:
    size = prod(extents)
    room = max(size, 1)  # clamped indices can always write
    _, groups, parts = counts
    steps = tuple(prod(extents[axis + 1 :]) if size else 0 for axis in range(len(extents)))
    apart = (groups * parts * room, parts * room, room)
    return GradientBuffer(
        buffer=torch.zeros((prod(counts), room), dtype=dtype),
        copies=(
            apart[0] if counts[0] > 1 else 0,
            apart[1] if groups > 1 else 0,
            apart[2] if parts > 1 else 0,
        ),
        steps=steps,
        extents=extents,
    )


def _summed(copied: Tensor) -> Tensor:
    return copied[0] if copied.shape[0] == 1 else copied.sum(0)


def _narrowed(x: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Without the padding of the last axis."""
    return x.to(dtype) if x.shape[-1] == size else x[..., :size].to(dtype).contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()
