"""Runs a Kernel for one block of rows: turns its queries, keys, values and row indices into outputs, on torch.

Row values are [R, 1] over the rows of a block, key values [T] over the keys of a tile, elements [R, T].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from attncompiler.ir.expr import (
    Dot,
    Expr,
    Index,
    OldStat,
    Score,
    Stat,
    Value,
)
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.kernel import Kernel, KernelPass, KeyRanges, Let, Sweep
from attncompiler.ir.program import ReduceOp
from attncompiler.ir.streaming import IDENTITY
from attncompiler.ir.tiles import CORNERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Leaves = dict[Expr, "Tensor"]


@dataclass(slots=True)
class Block:
    """Rows of one batch and key/value head with what they have seen of the keys.

    ``leaves`` holds what is known outside the key loop: scalars, [R, 1] row values and final statistics.
    ``stats`` are [R, 1], ``sums`` [R, Dv], ``seen`` (the row met an allowed key) [R, 1].
    """

    query: Tensor
    key: Tensor
    value: Tensor
    leaves: Leaves
    corners: Leaves
    seen: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)


def tile_starts(
    ranges: KeyRanges | None, keys: int, tile: int, value_of: Callable[[Expr], Tensor]
) -> list[int]:
    """The first keys of the tiles that ranges meet; of all tiles when they are not known."""
    if ranges is None or not bool(value_of(ranges.small)):
        return list(range(0, keys, tile))
    found = set[int]()
    for span in ranges.spans:
        when, lo, end = (int(value_of(e)) for e in span.formulas())
        if when:
            lo, end = max(lo, 0), min(end, keys)
            found.update(range(lo // tile * tile, end, tile) if lo < end else ())
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Run:
    """A kernel with the arguments of one call; ``storage`` holds each captured tensor as flat memory."""

    kernel: Kernel
    scale: float
    storage: Mapping[str, Tensor]
    dtype: torch.dtype
    tile: int

    def value_of(self, expr: Expr, leaves: Leaves) -> Tensor:
        """An expression where the values of its leaves are given."""
        return evaluate(expr, leaves, self._load, self.dtype)

    def define(self, lets: Iterable[Let], leaves: Leaves) -> None:
        """Compute locals in order; each is a leaf of what follows."""
        for let in lets:
            leaves[let.local] = self.value_of(let.expr, leaves)

    def _outside(self, block: Block) -> Callable[[Expr], Tensor]:
        return partial(self.value_of, leaves=block.corners)

    def block(self, block: Block) -> None:
        """All passes over the keys of one block of rows."""
        self.define(self.kernel.uniform, block.leaves)
        for number, kernel_pass in enumerate(self.kernel.passes):
            self.define(kernel_pass.rows, block.leaves)
            updates = [u for sweep in kernel_pass.sweeps for u in sweep.stats]
            running = {u.name: block.seen.to(self.dtype) * 0.0 + IDENTITY[u.op] for u in updates}
            block.stats |= running
            for w in kernel_pass.weights:
                block.sums[w.accumulator] = block.query.new_zeros(
                    len(block.query), block.value.shape[-1]
                )
            keys = len(block.key)
            for first in tile_starts(self.kernel.ranges, keys, self.tile, self._outside(block)):
                self._visit(block, kernel_pass, number, first, min(first + self.tile, keys))
            block.leaves |= {Stat(u.name): block.stats[u.name] for u in updates}

    def _visit(self, block: Block, kernel_pass: KernelPass, number: int, k0: int, end: int) -> None:
        """One key tile of one pass."""
        import torch

        first, last = CORNERS["k"]
        corners = block.corners | {first: torch.tensor(k0), last: torch.tensor(end - 1)}
        if not self.value_of(self.kernel.possible, corners):
            return
        full = bool(self.value_of(self.kernel.certain, corners))
        leaves = dict(block.leaves)
        leaves[Index("k")] = torch.arange(k0, end)
        self.define(kernel_pass.keys, leaves)
        leaves[Dot()] = block.query @ block.key[k0:end].T * self.scale
        leaves[Score()] = self.value_of(kernel_pass.score, leaves)
        allowed = torch.tensor(True)
        if kernel_pass.mask is not None and not full:
            allowed = self.value_of(kernel_pass.mask, leaves)
        shape = (len(block.query), end - k0)
        allowed = torch.broadcast_to(allowed, shape)
        if number == 0:
            block.seen = block.seen | allowed.any(-1, keepdim=True)
        for sweep in kernel_pass.sweeps:
            self._sweep(block, sweep, leaves, allowed, block.value[k0:end])

    def _sweep(
        self, block: Block, sweep: Sweep, leaves: Leaves, allowed: Tensor, values: Tensor
    ) -> None:
        """One walk over the elements of a tile."""
        import torch

        self.define(sweep.lanes, leaves)
        moved: Leaves = {}
        for update in sweep.stats:
            identity = IDENTITY[update.op]
            terms = torch.where(allowed, self.value_of(update.body, leaves), identity)
            old = block.stats[update.name]
            now = old
            if update.factor is not None:
                now = old * self.value_of(update.factor, leaves)
                if update.op != "sum":
                    now = torch.where(old == identity, old, now)
            block.stats[update.name] = new = reduce_rows(update.op, now, terms)
            moved |= {OldStat(update.name): old, Stat(update.name): new}
        for weight in sweep.weights:
            terms = torch.where(allowed, self.value_of(weight.body, leaves), 0.0)
            total = block.sums[weight.accumulator]
            if weight.factor is not None:
                total = total * self.value_of(weight.factor, leaves)
            block.sums[weight.accumulator] = total + terms @ values
        leaves |= moved

    def finish(self, block: Block) -> tuple[Tensor, dict[str, Tensor]]:
        """Output [R, Dv] and kept statistics [R] of a block whose passes are done."""
        import torch

        finish, leaves = self.kernel.finish, block.leaves
        rows, features = len(block.query), block.value.shape[-1]
        self.define(finish.rows, leaves)
        total: Tensor = block.query.new_zeros(rows, features)
        for name, coefficient in finish.coefficients:
            total = total + self.value_of(coefficient, leaves) * block.sums[name]
        total = torch.where(block.seen, total, 0.0)
        kept = {
            name: torch.broadcast_to(self.value_of(expr, leaves), (rows, 1))[:, 0]
            for name, expr in finish.kept
        }
        inner = leaves | {Value(): total, Index("d"): torch.arange(features)}
        for r in finish.reductions:
            body = torch.broadcast_to(self.value_of(r.body, inner), (rows, features))
            start = torch.full((rows, 1), IDENTITY[r.op], dtype=self.dtype)
            inner[Stat(r.name)] = reduce_rows(r.op, start, body)
        return torch.broadcast_to(self.value_of(finish.output, inner), (rows, features)), kept

    def _load(self, name: str, indices: tuple[Tensor, ...]) -> Tensor:
        (offset,) = indices
        storage = self.storage[name]
        if offset.numel() and not 0 <= int(offset.min()) <= int(offset.max()) < len(storage):
            raise IndexError(f"the kernel reads {name} outside its storage")
        element = storage[offset]
        return element.to(self.dtype) if element.is_floating_point() else element


def reduce_rows(op: ReduceOp, start: Tensor, terms: Tensor) -> Tensor:
    """``start`` [R, 1] combined with terms [R, T] along their last axis, T > 0."""
    import torch

    match op:
        case "sum":
            return start + terms.sum(-1, keepdim=True)
        case "max":
            return torch.maximum(start, terms.amax(-1, keepdim=True))
        case "min":
            return torch.minimum(start, terms.amin(-1, keepdim=True))
