"""Lists the full and partial tiles of a mask for Triton kernels, and keeps the lists while they hold.

Content of tensors on a GPU is not compared: that would wait for it. A tensor counts as changed when it is another piece
of memory or torch has noted a change in place; while a CUDA graph is captured nothing is taken from earlier, so that
each replay plans anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attncompiler.runtime.tile_tables import Content, Sizes, stream_of
from attncompiler.runtime.triton_launch import (
    PlanSignature,
    TileLists,
    captured_arguments,
    is_long,
    on_device,
    programs,
)
from attncompiler.runtime.triton_launch import (
    numbers as number_arguments,
)

_MOST_TABLES = 8


@dataclass(frozen=True, slots=True)
class _Entry:
    key: tuple[object, ...]
    contents: tuple[Content, ...]
    lists: TileLists


@dataclass(slots=True)
class Planner:
    """A planning kernel and its newest lists."""

    module: ModuleType
    signature: PlanSignature
    entries: list[_Entry] = field(default_factory=list)

    def lists(
        self,
        device: torch.device,
        sizes: Sizes,
        q_start: int,
        numbers: Mapping[str, float],
        tensors: Mapping[str, Tensor],
        block: tuple[int, int],
        *,
        transposed: bool = False,
    ) -> TileLists:
        """The lists of a call, whose checks have been made; ``block`` is how many queries and keys a tile has.

        ``numbers`` and ``tensors`` are by their names in the kernel. ``transposed``: a list for each block of keys.
        """
        read = [tensors[name] for name, _ in self.signature.tensors]
        params = [numbers[name] for _, name in self.signature.params]
        key = (
            *(device, stream_of(device), sizes, q_start, block, transposed, *params),
            *((x.shape, x.stride(), x.dtype) for x in read),
        )
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if not capturing:
            for entry in self.entries:
                if entry.key == key and all(
                    c.same(x) for c, x in zip(entry.contents, read, strict=True)
                ):
                    return entry.lists
        made = self._made(device, sizes, q_start, params, read, block, transposed)
        if not capturing:
            entry = _Entry(key, tuple(Content.of(x, copies=not x.is_cuda) for x in read), made)
            self.entries = [entry, *self.entries[: _MOST_TABLES - 1]]
        return made

    def _made(
        self,
        device: torch.device,
        sizes: Sizes,
        q_start: int,
        params: list[float],
        tensors: list[Tensor],
        block: tuple[int, int],
        transposed: bool,
    ) -> TileLists:
        sign = self.signature
        batches = sizes.batch if sign.by_batch else 1
        heads = sizes.heads if sign.by_head else 1
        rows, columns = (
            -(-n // b) for n, b in zip((sizes.queries, sizes.keys), block, strict=True)
        )
        if transposed:
            rows, columns = columns, rows
        lists = torch.empty(
            (batches, heads, rows, 2, 1 + columns), dtype=torch.int32, device=device
        )
        arguments: dict[str, Any] = {
            "tile_lists": lists, "blocks": rows, "columns": columns, "heads": heads,
            "H": sizes.heads, "G": max(sizes.groups, 1), "M": sizes.queries, "N": sizes.keys,
            "q_start": q_start,
            **number_arguments(sign.params, params),
            **captured_arguments(sign.tensors, tensors),
            "BLOCK_M": block[0], "BLOCK_N": block[1], "TRANSPOSED": transposed,
            "EXACT": sign.exact, "LONG": is_long(tensors),
        }  # fmt: skip
        if lists.numel():
            with on_device(lists):
                self.module.plan[programs(rows, heads, batches)](**arguments)
        length = lists[..., 0].sum(-1)
        order = length.argsort(dim=-1, descending=True, stable=True).to(torch.int32)
        return TileLists(lists, order)
