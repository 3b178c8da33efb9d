"""Puts the tokens of a call into the order of the variant's layout, and its results back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attncompiler.layouts import lengthened
from attncompiler.runtime.errors import LayoutStartError
from attncompiler.runtime.launch import is_plain

if TYPE_CHECKING:
    from attncompiler.layouts import Boxes


class Arrangement:
    """What an operator with a layout does around its kernel; ``reads`` are the tensors of the kernel, in order,
    ``orders`` the names of those that hold the order of queries and of keys."""

    def __init__(
        self, name: str, layout: Boxes, orders: Sequence[str], reads: Sequence[str]
    ) -> None:
        self.name = name
        self.grid = layout.grid
        self.inside = layout.permuted_by == "op"
        self.slots = tuple(reads.index(n) if n in reads else None for n in orders)
        # Tensors, not calls of the layout: tracers see them as constants.
        self.orders = tuple(layout.order(keys=keys) for keys in (False, True))
        self.inverse = layout.inverse()
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def inputs(
        self, q: Tensor, k: Tensor, v: Tensor, captured: Sequence[Tensor | None], q_start: int
    ) -> tuple[Tensor, Tensor, Tensor, Sequence[Tensor | None]]:
        """q, k and v as the kernel takes them, and the captured tensors with the order of tokens."""
        if q_start:
            raise LayoutStartError(variant=self.name, q_start=q_start)
        if not all(isinstance(x, Tensor) and x.dim() == 4 for x in (q, k, v)):
            return q, k, v, captured  # refused where inputs are checked
        found = list(captured)
        orders = [
            lengthened(self.tables(x.device)[keys], x.shape[2], self.grid, keys)
            for x, keys in ((q, False), (k, True))
        ]
        for slot, order in zip(self.slots, orders, strict=True):
            if slot is not None:
                found[slot] = order.to(torch.int32)
        if self.inside and v.shape[2] == k.shape[2]:
            q = q.index_select(2, orders[0])
            k, v = (x.index_select(2, orders[1]) for x in (k, v))
        return q, k, v, found

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The orders of queries and of keys and the inverse, on a device.

        It gets them once: a copy from the CPU waits for the device, and cannot be part of a CUDA graph.
        """
        if not torch.compiler.is_compiling() and device in self._on:
            return self._on[device]
        of_queries, of_keys, inverse = (x.to(device) for x in (*self.orders, self.inverse))
        found = of_queries, of_keys, inverse
        if not torch.compiler.is_compiling() and is_plain(found):
            self._on[device] = found
        return found

    def results(self, out: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The output and the kept statistics ``[n, B, H, M]`` in the order of the caller."""
        if not self.inside:
            return out, rows
        order = lengthened(self.tables(out.device)[2], out.shape[2], self.grid, False)
        return out.index_select(2, order), None if rows is None else rows.index_select(3, order)
