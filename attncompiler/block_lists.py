"""The lists of a BlockMask: turns indices of full and of partial blocks into a table of block states.

A pair is allowed when its block is full, or when it is partial and mask_mod allows the pair. The table holds one byte
for each pair of blocks; kernels read it to skip empty blocks and to leave the mask out of full ones. Where the formula
of mask_mod alone implies all of it, the table is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from attncompiler import errors
from attncompiler.ir.expr import Axis, Const, Expr, Index, Load, Param, axes_of, walk
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.ops import Kind
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.tiles import CORNERS, tile_set
from attncompiler.recorder import Recorder
from attncompiler.runtime.call_checks import refuse_device
from attncompiler.runtime.tile_tables import stream_of

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

EMPTY, PARTIAL, FULL = 0, 1, 2
_WHOLE = 1 << 30  # the block size of torch's mask that stands for none
_MOST_ANSWERS, _MOST_BLOCKS = 64, 1 << 18
_BATCH_AXES: tuple[Axis, Axis] = ("b", "h")
_LENGTH_AXES: tuple[Axis, Axis] = ("q", "k")
Content: TypeAlias = "Tensor | tuple[ref[torch.UntypedStorage], int, int] | int | None"
_LISTS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")


@dataclass(slots=True)
class BlockLists:
    """The lists of one BlockMask for M queries and N keys.

    ``states`` is int8 ``[1 or B, 1 or H, blocks of queries, blocks of keys]`` of EMPTY, PARTIAL and FULL; ``block``
    says how many queries and keys a block has, ``lengths`` are M and N. ``silent``: every block is partial.
    """

    states: Tensor
    block: tuple[int, int]
    lengths: tuple[int, int]
    silent: bool
    implied: dict[tuple[object, ...], bool] = field(default_factory=dict)

    def condition(
        self, mask: Expr, numbers: Mapping[str, float], sizes: tuple[int, int], rec: Recorder
    ) -> Expr:
        """Which pairs are allowed.

        ``mask`` is the formula of mask_mod, ``numbers`` the values of its run-time numbers, ``sizes`` B and H of
        the call.
        """
        if self.silent or self._implied_by(mask, numbers, sizes):
            return mask
        declaration = rec.capture(self.states)
        first = [
            Index(axis) if extent > 1 else Const(0)
            for axis, extent in zip(_BATCH_AXES, self.states.shape[:2], strict=True)
        ]
        blocks = [
            make("floordiv", Index(axis), Const(size))
            for axis, size in zip(_LENGTH_AXES, self.block, strict=True)
        ]
        state = Load(declaration.name, (*first, *blocks), "int")
        if mask is Const(True):
            return make("ne", state, Const(EMPTY))
        partly = make("and", make("eq", state, Const(PARTIAL)), mask)
        return make("or", make("eq", state, Const(FULL)), partly)

    def _implied_by(self, mask: Expr, numbers: Mapping[str, float], sizes: tuple[int, int]) -> bool:
        """Whether mask_mod itself forbids every pair of each empty block and allows every pair of each full one."""
        names = sorted({n.name for n in walk(mask) if isinstance(n, Param)})
        key = (mask, sizes, *(numbers[name] for name in names))
        known = self.implied.get(key)
        if known is None:
            if len(self.implied) >= _MOST_ANSWERS:
                self.implied.clear()
            leaves = {name: numbers[name] for name in names}
            known = self.implied[key] = self._proved(mask, leaves, sizes)
        return known

    def _proved(self, mask: Expr, numbers: Mapping[str, float], sizes: tuple[int, int]) -> bool:
        """Decide it by the conditions that classify tiles, for many blocks at once."""
        tiles = tile_set(mask)
        if any(isinstance(n, Load) for n in walk(tiles.possible, tiles.certain)):
            return False  # what tensors hold may be other numbers at the next call
        leaves: dict[Expr, Tensor] = {}
        for name, value in numbers.items():
            kind, dtype = (
                ("int", torch.int64) if isinstance(value, int) else ("float", torch.float64)
            )
            leaves[Param(name, cast(Kind, kind))] = torch.tensor(value, dtype=dtype)
        axes = axes_of(mask)
        batches, heads = (
            size if axis in axes else 1 for axis, size in zip(_BATCH_AXES, sizes, strict=True)
        )
        device = self.states.device
        leaves[Index("b")] = torch.arange(batches, device=device)[:, None, None, None]
        leaves |= dict.fromkeys(CORNERS["h"], torch.arange(heads, device=device)[:, None, None])
        leaves |= self._corners("k", slice(None))
        rows, columns = self.states.shape[2:]
        step = max(1, _MOST_BLOCKS // max(1, batches * heads * columns))
        for start in range(0, rows, step):
            part = slice(start, start + step)
            states = self.states[:, :, part]
            leaves |= {c: x[:, None] for c, x in self._corners("q", part).items()}
            possible, certain = (evaluate(e, leaves) for e in (tiles.possible, tiles.certain))
            wrong = ((states == EMPTY) & possible) | ((states == FULL) & ~certain)
            if wrong.any():
                return False
        return True

    def _corners(self, axis: Axis, part: slice) -> dict[Expr, Tensor]:
        """The first and the last position of blocks of queries or keys."""
        which = _LENGTH_AXES.index(axis)
        size, length = self.block[which], self.lengths[which]
        count, device = self.states.shape[2 + which], self.states.device
        first = torch.arange(count, device=device)[part] * size
        return dict(
            zip(CORNERS[axis], (first, (first + size - 1).clamp(max=length - 1)), strict=True)
        )


_KNOWN: WeakKeyDictionary[Any, tuple[_Seen, BlockLists]] = WeakKeyDictionary()


def block_lists(block_mask: BlockMask, q: Tensor, k: Tensor) -> BlockLists:
    """The lists of a BlockMask, checked against a call; computed once for each object while its lists stay the same.

    q is ``[B, H, M, D]``, k ``[B, G, N, D]``. Raises ShapeError or DeviceError for a mask that does not fit them.
    """
    seen = _Seen.of(block_mask, q.device)
    known = _KNOWN.get(block_mask)
    if known is None or not seen.same(known[0]):
        lengths = _lengths(block_mask, q, k)
        known = seen, _read(block_mask, lengths)
        _KNOWN[block_mask] = known
    lists = known[1]
    if lists.lengths != (q.shape[2], k.shape[2]):
        lists = _read(block_mask, _lengths(block_mask, q, k))
        _KNOWN[block_mask] = seen, lists
    for axis, extent, size in zip(
        ("batch", "heads"), lists.states.shape[:2], q.shape[:2], strict=True
    ):
        if extent not in (1, size):
            raise _misfit(
                f"it has {extent} entries along the axis of {axis}, the query has {size}",
                f"make it for {size}, or for one that holds for all",
            )
    return lists


@dataclass(frozen=True, slots=True)
class _Seen:
    """The lists a table was computed from, and what tells whether they still hold the same numbers."""

    tensors: tuple[Tensor | None, ...]
    contents: tuple[Content, ...]
    form: tuple[object, ...]

    @classmethod
    def of(cls, block_mask: BlockMask, device: torch.device) -> _Seen:
        missing = [n for n in (*_LISTS, "BLOCK_SIZE", "seq_lengths") if not hasattr(block_mask, n)]
        if missing:
            raise errors.ArgumentsError(
                name="flex_attention",
                detail=f"block_mask is a {type(block_mask).__name__}",
                fix="make one with create_block_mask of torch, or pass the function as mask_mod=",
            )
        tensors = tuple(getattr(block_mask, name) for name in _LISTS)
        for name, x in zip(_LISTS, tensors, strict=True):
            if x is not None and x.device != device:
                why = f"the query is on {device}"
                refuse_device(f"block_mask.{name}", x.device, why, str(device))
        form = (tuple(block_mask.BLOCK_SIZE), tuple(block_mask.seq_lengths))
        return cls(tensors, contents_of(tensors, device), form)

    def same(self, other: _Seen) -> bool:
        if self.form != other.form:
            return False
        if any(a is not b for a, b in zip(self.tensors, other.tensors, strict=True)):
            return False
        return all(
            torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
            for a, b in zip(self.contents, other.contents, strict=True)
        )


def contents_of(lists: Sequence[Tensor | None], device: torch.device) -> tuple[Content, ...]:
    """What tells whether a table that was made of lists holds for another call on a device."""
    return (*map(content_of, lists), stream_of(device))


def content_of(x: Tensor | None) -> Content:
    """What tells a change: the memory and the counter of in-place changes; a copy for tensors of inference mode.

    Those have no counter. ``x.data = y`` changes the memory alone.
    """
    if x is None:
        return None
    return x.clone() if x.is_inference() else (ref(x.untyped_storage()), x.data_ptr(), x._version)


def _misfit(detail: str, fix: str) -> errors.ShapeError:
    return errors.ShapeError(name="block_mask", detail=detail, fix=fix)


def _lengths(block_mask: BlockMask, q: Tensor, k: Tensor) -> tuple[int, int]:
    """M and N, after comparing them with the lengths the mask was made for."""
    lengths = q.shape[2], k.shape[2]
    if (
        tuple(block_mask.BLOCK_SIZE) != (_WHOLE, _WHOLE)
        and tuple(block_mask.seq_lengths) != lengths
    ):
        made = tuple(block_mask.seq_lengths)
        raise _misfit(
            f"it was made for {made[0]} queries and {made[1]} keys, the call has {lengths[0]} and {lengths[1]}",
            "make it for these lengths",
        )
    return lengths


def _read(block_mask: BlockMask, lengths: tuple[int, int]) -> BlockLists:
    block = (int(block_mask.BLOCK_SIZE[0]), int(block_mask.BLOCK_SIZE[1]))
    rows, columns = (-(-length // size) for length, size in zip(lengths, block, strict=True))
    states = _listed(block_mask.kv_num_blocks, block_mask.kv_indices, rows, columns)
    if block_mask.full_kv_num_blocks is not None and block_mask.full_kv_indices is not None:
        full = _listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, rows, columns)
        states = torch.maximum(states, full * FULL)
    silent = bool((states == PARTIAL).all())
    return BlockLists(states.contiguous(), block, lengths, silent)


def _listed(numbers: Tensor, indices: Tensor, rows: int, columns: int) -> Tensor:
    """int8 ``[1 or B, 1 or H, rows, columns]``: 1 where a list names the block. Blocks past the end have no pairs."""
    while indices.dim() < 4:
        numbers, indices = numbers[None], indices[None]
    if numbers.shape != indices.shape[:3]:
        raise _misfit(
            f"its lists have shape {list(indices.shape)}, their lengths {list(numbers.shape)}",
            "give a length for each list",
        )
    if indices.shape[2] < rows:
        raise _misfit(
            f"it has lists for {indices.shape[2]} blocks of queries, the call has {rows}",
            "make it for these lengths",
        )
    numbers, indices = numbers[:, :, :rows, None], indices[:, :, :rows].long()
    named = torch.arange(indices.shape[3], device=indices.device) < numbers
    if (numbers > indices.shape[3]).any() or (named & (indices < 0)).any():
        raise _misfit(
            "a list is longer than its storage, or holds a negative index",
            "block indices count from 0",
        )
    places = torch.where(named & (indices < columns), indices, columns)
    shape = (*places.shape[:3], columns + 1)
    found = torch.zeros(shape, dtype=torch.int8, device=places.device)
    return found.scatter_(3, places, 1)[..., :columns]
