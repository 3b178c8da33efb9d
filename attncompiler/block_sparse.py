"""Block lists of the caller's own: for each block of queries the blocks of keys it visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from attncompiler import errors
from attncompiler.runtime.errors import DtypeError
from attncompiler.user_code import shows_call

INDEX_TYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False, init=False)
class BlockSparse:
    """The pairs of a call that may be attended: ``op(q, k, v, sparsity=BlockSparse(indices, counts))``.

    ``indices`` is an int tensor ``[1 or B, 1, G or H, blocks of queries, most]``, ``counts`` is without the last axis:
    the first ``counts`` entries of a list name different blocks of keys, the rest is not looked at. ``block`` says how
    many queries and keys a block has; the last blocks of a call may be cut off. Leading axes may be left out, and an
    extent of G instead of H gives one list to all heads of a group.

    Blocks count the rows of the call, wherever ``q_start`` lies, and keys from 0. A pair is attended when its block is
    listed and the variant's mask allows it. Lists are checked at the call, in time linear in the number of blocks.
    Raises ShapeError, DtypeError or ArgumentsError for tensors that no call could take.
    """

    indices: Tensor
    counts: Tensor
    block: tuple[int, int]

    @shows_call
    def __init__(
        self, indices: Tensor, counts: Tensor, block: tuple[int, int] = (128, 128)
    ) -> None:
        for name, x in (("indices", indices), ("counts", counts)):
            if not isinstance(x, Tensor) or x.dtype not in INDEX_TYPES:
                found = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise DtypeError(
                    name=f"BlockSparse.{name}",
                    detail=f"expected a tensor of integers, got {found}",
                    fix="convert it: torch.as_tensor(...).int()",
                )
        lists, lengths = tuple(indices.shape), tuple(counts.shape)
        if not 2 <= len(lists) <= 4 or lists[:-1] != lengths:
            raise errors.ShapeError(
                name="BlockSparse",
                detail=f"indices have shape {list(lists)}, counts {list(lengths)}",
                fix="indices are [1 or B, 1, G or H, blocks of queries, most], counts have one number for each list",
            )
        _check_block(block)
        self._set(indices, counts, block)

    def _set(self, indices: Tensor, counts: Tensor, block: tuple[int, int]) -> None:
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "block", (block[0], block[1]))
        # torch.compile would make symbols of numbers that differ between calls; a text stays one.
        object.__setattr__(self, "_size", f"{block[0]} {block[1]}")

    @property
    def size(self) -> tuple[int, int]:
        """``block``, in a form that is fixed in a trace."""
        rows, columns = self.__dict__["_size"].split()
        return int(rows), int(columns)

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockSparse, (self.indices, self.counts, self.block)

    @classmethod
    @shows_call
    def from_dense(cls, table: Tensor, block: tuple[int, int] = (128, 128)) -> BlockSparse:
        """The lists of a bool table ``[(1 or B, (1, G or H,)) blocks of queries, blocks of keys]``, padded with -1."""
        if not isinstance(table, Tensor) or table.dtype != torch.bool or not 2 <= table.dim() <= 4:
            found = (
                f"{table.dtype} of {table.dim()} axes"
                if isinstance(table, Tensor)
                else type(table).__name__
            )
            raise errors.ArgumentsError(
                name="BlockSparse.from_dense",
                detail=f"expected a bool tensor [..., blocks of queries, blocks of keys], got {found}",
                fix="write table != 0, or table[None]",
            )
        counts = table.sum(-1, dtype=torch.int32)
        places = table.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        past = torch.arange(table.shape[-1], device=table.device) >= counts[..., None]
        return cls(torch.where(past, -1, places).to(torch.int32), counts, block)

    def dense(self, columns: int | None = None) -> Tensor:
        """The bool table ``[..., blocks of queries, columns]`` of what is listed, with as many axes as ``indices``.

        ``columns`` is the number of blocks of keys; left out, it ends with the last listed one. Entries that name no
        block are left out here; a call refuses them.
        """
        named = torch.arange(self.indices.shape[-1], device=self.indices.device)
        places = torch.where(named < self.counts[..., None], self.indices.long(), -1)
        if columns is None:
            columns = int(places.max()) + 1 if places.numel() else 0
        inside = (places >= 0) & (places < columns)
        found = places.new_zeros((*places.shape[:-1], columns + 1), dtype=torch.int8)
        found.scatter_(-1, torch.where(inside, places, columns), 1)
        return found[..., :columns] != 0

    def transposed(self, columns: int | None = None) -> BlockSparse:
        """For each of ``columns`` blocks of keys the blocks of queries that list it, in rising order."""
        return BlockSparse.from_dense(self.dense(columns).mT, (self.block[1], self.block[0]))


def _check_block(block: object) -> None:
    good = (
        isinstance(block, (tuple, list))
        and len(block) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in block)
    )
    if not good:
        raise errors.ArgumentsError(
            name="BlockSparse",
            detail=f"block is {block!r}",
            fix="give two numbers from 1 up: how many queries and how many keys a block has",
        )


def _flatten(lists: BlockSparse) -> tuple[list[Any], Any]:
    return [lists.indices, lists.counts], tuple(lists.block)


def _flatten_with_keys(lists: BlockSparse) -> tuple[list[Any], Any]:
    leaves, block = _flatten(lists)
    keys = (_pytree.GetAttrKey("indices"), _pytree.GetAttrKey("counts"))
    return list(zip(keys, leaves, strict=True)), block


def _unflatten(leaves: Any, block: Any) -> BlockSparse:
    """Without checks: transforms put things in place of tensors."""
    made: BlockSparse = object.__new__(BlockSparse)
    made._set(leaves[0], leaves[1], block)
    return made


# So that exported programs may take lists as an input, and be loaded.
torch.serialization.add_safe_globals([BlockSparse])
_pytree.register_pytree_node(
    BlockSparse,
    _flatten,
    _unflatten,
    serialized_type_name="attncompiler.BlockSparse",
    to_dumpable_context=list,
    from_dumpable_context=tuple,
    flatten_with_keys_fn=_flatten_with_keys,
)
