"""Loads built C++ kernels and calls them: packs a call's pointers, sizes and scalars into their argument blocks."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from attncompiler.runtime.signature import BackwardSignature, Signature
from attncompiler.runtime.tile_tables import NOT_PLANNED, PARAMETER_CODES, TileTable

# B, H, G, M, N and three strides each of q, k, v and out.
_SHAPES = struct.Struct("=5q12q")


@dataclass(frozen=True, slots=True)
class Layout:
    """Packed sizes and strides of a call, and (stride, extent) of every axis of each captured tensor."""

    shapes: bytes
    axes: tuple[bytes, ...]


class Library:
    """A loaded kernel."""

    def __init__(self, path: Path, signature: Signature) -> None:
        # ctypes resolves the OpenMP runtime's symbols among the libraries torch has loaded for everyone.
        self._attention = ctypes.CDLL(str(path)).attention
        self._attention.argtypes = [ctypes.c_char_p]
        self._attention.restype = None
        params = "".join(PARAMETER_CODES[p.kind] for p in signature.params)
        ranks = [len(t.axes) for t in signature.tensors]
        tensors = "".join(f"q{16 * rank}s" for rank in ranks)
        results = len(signature.kept) + len(signature.stats) + 1
        results += len(NOT_PLANNED) if signature.planned else 0
        self._unplanned = NOT_PLANNED if signature.planned else ()
        self._nothing_saved = (None,) * len(signature.stats)
        self._block = struct.Struct(f"=4q{_SHAPES.size}s2qd{params}{tensors}{results}q")
        self._axes = tuple(struct.Struct(f"={2 * rank}q") for rank in ranks)

    def layout(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        tensors: Sequence[torch.Tensor],
    ) -> Layout:
        """The part of the argument block that depends only on shapes and strides; calls may share it."""
        batch, heads, queries, _ = q.shape
        _, groups, keys, _ = k.shape
        strides = q.stride()[:3] + k.stride()[:3] + v.stride()[:3] + out.stride()[:3]
        axes = []
        for pack, tensor in zip(self._axes, tensors, strict=True):
            pairs = zip(tensor.stride(), tensor.shape, strict=True)
            axes.append(pack.pack(*(number for pair in pairs for number in pair)))
        return Layout(_SHAPES.pack(batch, heads, groups, queries, keys, *strides), tuple(axes))

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        *,
        layout: Layout,
        q_start: int,
        scale: float,
        params: Sequence[float],
        tensors: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor | None],
        saved: Sequence[torch.Tensor | None] = (),
        value: torch.Tensor | None = None,
        table: TileTable | None = None,
    ) -> None:
        """Fill ``out`` and the given row statistics. All checks have been made by the caller.

        ``saved`` are the statistics of the plan, in its order, each [B, H, M] contiguous or None, or () for none of
        them; ``value`` [B, H, M, Dv], contiguous, receives the output row before the epilogue. Both are in the
        kernel's real type. ``table`` says which tiles are empty and full. ``layout`` was made by the method of that
        name for tensors of the same shapes and strides.
        """
        captured: list[int | bytes] = []
        for tensor, axes in zip(tensors, layout.axes, strict=True):
            captured += (tensor.data_ptr(), axes)
        self._attention(
            self._block.pack(
                q.data_ptr(),
                k.data_ptr(),
                v.data_ptr(),
                out.data_ptr(),
                layout.shapes,
                q_start,
                torch.get_num_threads(),
                scale,
                *params,
                *captured,
                *[0 if stat is None else stat.data_ptr() for stat in kept],
                *[0 if stat is None else stat.data_ptr() for stat in saved or self._nothing_saved],
                0 if value is None else value.data_ptr(),
                *(self._unplanned if table is None else table.fields()),
            )
        )


@dataclass(frozen=True, slots=True)
class GradientBuffer:
    """Where the gradient of a captured tensor is added up: copies, one behind the other, of the tensor's shape.

    ``copies`` are the distances, in elements, between the copies of tasks for neighbouring batches, groups and parts.
    """

    buffer: torch.Tensor
    copies: tuple[int, int, int]
    steps: tuple[int, ...]
    extents: tuple[int, ...]


class BackwardLibrary:
    """A loaded backward."""

    def __init__(self, path: Path, signature: BackwardSignature) -> None:
        self._signature = signature
        self._attention = ctypes.CDLL(str(path)).attention_backward
        self._attention.argtypes = [ctypes.c_char_p]
        self._attention.restype = None
        params = "".join(PARAMETER_CODES[p.kind] for p in signature.params)
        tensors = "".join("q" * (1 + 2 * len(t.axes)) for t in signature.tensors)
        grads = "".join("q" * (4 + g.rank * (2 if g.own else 1)) for g in signature.grads)
        pointers = len(signature.saved) + len(signature.kept)
        states = len(NOT_PLANNED) if signature.planned else 0
        self._block = struct.Struct(f"=8q5q18q2q3qd{params}{tensors}{pointers}q{grads}{states}q")

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        *,
        value: torch.Tensor | None,
        dq: torch.Tensor | None,
        dk: torch.Tensor | None,
        dv: torch.Tensor | None,
        q_start: int,
        parts: int,
        serial: tuple[bool, bool],
        scale: float,
        params: Sequence[float],
        tensors: Sequence[torch.Tensor],
        saved: Sequence[torch.Tensor],
        kept_grads: Sequence[torch.Tensor | None],
        grads: Sequence[GradientBuffer],
        table: TileTable | None = None,
    ) -> None:
        """Fill ``dq`` and add to the zeroed ``dk``, ``dv`` and ``grads``. All checks have been made by the caller.

        Shapes and types are those of ``struct Arguments`` in ``templates/cpp/backward.cpp.j2``; ``serial`` says whether
        one task takes all batches, and all groups.
        """
        batch, heads, queries, _ = q.shape
        _, groups, keys, _ = k.shape
        outer = [x if x is None else x.stride()[:3] for x in (q, k, v, g, value, dq)]
        fields: list[float] = [
            0 if x is None else x.data_ptr() for x in (q, k, v, g, value, dq, dk, dv)
        ]
        fields += (batch, heads, groups, queries, keys)
        for strides in outer:
            fields += (0, 0, 0) if strides is None else strides
        fields += (q_start, torch.get_num_threads(), parts, *serial, scale)
        fields += params
        for tensor in tensors:
            fields.append(tensor.data_ptr())
            for stride, extent in zip(tensor.stride(), tensor.shape, strict=True):
                fields += (stride, extent)
        fields += (x.data_ptr() for x in saved)
        fields += (0 if x is None else x.data_ptr() for x in kept_grads)
        for declared, grad in zip(self._signature.grads, grads, strict=True):
            fields += (grad.buffer.data_ptr(), *grad.copies)
            for step, extent in zip(grad.steps, grad.extents, strict=True):
                fields += (step, extent) if declared.own else (step,)
        if self._signature.planned:
            fields += NOT_PLANNED if table is None else table.fields()
        self._attention(self._block.pack(*fields))
