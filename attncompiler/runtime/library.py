"""Loads a built C++ kernel and calls it: packs a call's pointers, sizes and scalars into its argument block."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from attncompiler.ir.ops import Kind

_CODES: dict[Kind, str] = {"float": "d", "int": "q", "bool": "q"}


@dataclass(frozen=True, slots=True)
class Signature:
    """What the argument block holds after the fixed fields, in order.

    ``params`` gives the kinds of the run-time scalars, ``ranks`` the number of axes of each captured tensor,
    ``kept`` the number of row statistics the kernel can write.
    """

    params: tuple[Kind, ...]
    ranks: tuple[int, ...]
    kept: int


class Library:
    """A loaded kernel."""

    def __init__(self, path: Path, signature: Signature) -> None:
        # ctypes resolves the OpenMP runtime's symbols among the libraries torch has loaded for everyone.
        self._attention = ctypes.CDLL(str(path)).attention
        self._attention.argtypes = [ctypes.c_char_p]
        self._attention.restype = None
        params = "".join(_CODES[kind] for kind in signature.params)
        tensors = "".join("q" * (1 + 2 * rank) for rank in signature.ranks)
        self._block = struct.Struct(f"=4q5q12q2qd{params}{tensors}{signature.kept}q")

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        *,
        q_start: int,
        scale: float,
        params: Sequence[float],
        tensors: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor | None],
    ) -> None:
        """Fill ``out`` and the given row statistics. All checks have been made by the caller."""
        batch, heads, queries, _ = q.shape
        _, groups, keys, _ = k.shape
        fields: list[float] = [q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()]
        fields += (batch, heads, groups, queries, keys)
        fields += q.stride()[:3] + k.stride()[:3] + v.stride()[:3] + out.stride()[:3]
        fields += (q_start, torch.get_num_threads(), scale)
        fields += params
        for tensor in tensors:
            fields.append(tensor.data_ptr())
            for stride, extent in zip(tensor.stride(), tensor.shape, strict=True):
                fields += (stride, extent)
        fields += (0 if stat is None else stat.data_ptr() for stat in kept)
        self._attention(self._block.pack(*fields))
