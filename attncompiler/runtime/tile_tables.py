"""Plans tiles: turns the tensors that a mask reads into the states of all tiles, kept while those stay the same.

A planning kernel (``ir/tile_plan.py``) classifies the tiles of a call exactly. Its result is one byte a tile, which
forward and backward kernels read instead of asking the mask. It is computed again when a size, a number or the content
of a tensor changes: content is compared for tensors up to 1 MiB, larger ones count as changed when they are another
piece of memory or torch has noted a change in place.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from weakref import ref

import torch
from torch import Tensor

from attncompiler.ir.declared import Kind
from attncompiler.runtime.signature import PlanSignature

PARAMETER_CODES: dict[Kind, str] = {"float": "d", "int": "q", "bool": "q"}
# A table is made for as many pairs and at most so many tiles; a tile has at least so many queries and keys.
_FEWEST_PAIRS, _MOST_TILES, _SIDE = 1 << 16, 1 << 21, 32
_COMPARED_BYTES = 1 << 20
_MOST_TABLES = 8


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a call."""

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor) -> Sizes:
        """Those of q ``[B, H, M, D]`` and k ``[B, G, N, D]``."""
        return cls(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2])


class PlanLibrary:
    """A loaded planning kernel."""

    def __init__(self, path: Path, plan: PlanSignature) -> None:
        self._tiles = ctypes.CDLL(str(path)).attention_tiles
        self._tiles.argtypes = [ctypes.c_char_p]
        self._tiles.restype = ctypes.c_bool
        self.plan = plan
        params = "".join(PARAMETER_CODES[p.kind] for p in plan.params)
        tensors = "".join("q" * (1 + 2 * len(t.axes)) for t in plan.tensors)
        self._block = struct.Struct(f"=13q{params}{tensors}")

    def __call__(
        self,
        sizes: Sizes,
        q_start: int,
        numbers: Mapping[str, float],
        tensors: Mapping[str, Tensor],
        tile: tuple[int, int],
        *,
        count: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The states int8 ``[1 or B, 1 or H, rows, columns]``, and with ``count`` the number of allowed pairs.

        That is int64 ``[1 or B, 1 or H]``. ``tile`` is how many queries and keys a tile has. All checks of the tensors
        have been made by the caller.
        """
        batches = sizes.batch if self.plan.by_batch else min(sizes.batch, 1)
        heads = sizes.heads if self.plan.by_head else min(sizes.heads, 1)
        rows, columns = (-(-n // t) for n, t in zip((sizes.queries, sizes.keys), tile, strict=True))
        states = torch.empty((batches, heads, rows, columns), dtype=torch.int8)
        allowed = torch.zeros((batches, heads), dtype=torch.int64) if count else None
        fields: list[float] = [sizes.batch, sizes.heads, max(sizes.groups, 1)]
        fields += [sizes.queries, sizes.keys, q_start, torch.get_num_threads(), batches, heads]
        fields += [*tile, states.data_ptr(), 0 if allowed is None else allowed.data_ptr()]
        fields += [numbers[p.name] for p in self.plan.params]
        for decl in self.plan.tensors:
            x = tensors[decl.name]
            fields.append(x.data_ptr())
            for stride, extent in zip(x.stride(), x.shape, strict=True):
                fields += (stride, extent)
        if states.numel() and not self._tiles(self._block.pack(*fields)):
            raise MemoryError("no memory to classify the tiles of a mask")
        return states, allowed


@dataclass(frozen=True, slots=True)
class TileTable:
    """The states of all tiles of a call, as kernels read them: the sides of tiles are powers of two."""

    states: Tensor
    tile: tuple[int, int]

    def fields(self) -> tuple[int, ...]:
        """What ``struct Arguments`` of a planned kernel ends with."""
        batches, heads, rows, columns = self.states.shape
        head = rows * columns
        return (
            self.states.data_ptr(),
            heads * head if batches > 1 else 0,
            head if heads > 1 else 0,
            columns,
            *(side.bit_length() - 1 for side in self.tile),
        )


NOT_PLANNED = (0,) * 6


@dataclass(slots=True)
class _Entry:
    key: tuple[object, ...]
    contents: tuple[Content, ...]
    table: TileTable


@dataclass(frozen=True, slots=True)
class Content:
    """What tells whether a tensor still holds the numbers that it held: a copy, or its memory and change counter.

    Large tensors are not kept alive: memory that was given back may hold anything by now.
    """

    copy: Tensor | None
    owner: ref[Tensor]
    memory: ref[
        torch.UntypedStorage
    ]  # ``x.data = y`` gives a tensor other memory, later perhaps the same address
    pointer: int
    version: int | None

    @classmethod
    def of(cls, x: Tensor, *, copies: bool = True) -> Content:
        """What is known of a tensor now; with ``copies``, small ones are compared number by number later."""
        small = copies and x.numel() * x.itemsize <= _COMPARED_BYTES
        version = None if x.is_inference() else x._version
        copy, memory = x.detach().clone() if small else None, ref(x.untyped_storage())
        return cls(copy, ref(_owner(x)), memory, x.data_ptr(), version)

    def same(self, x: Tensor) -> bool:
        """Whether a tensor still holds the numbers that it held."""
        if self.copy is not None:
            return torch.equal(self.copy, x)
        return (
            self.version is not None
            and not x.is_inference()
            and self.owner() is _owner(x)
            and self.memory() is x.untyped_storage()
            and (self.pointer, self.version) == (x.data_ptr(), x._version)
        )


def stream_of(device: torch.device) -> int:
    """The stream on which calls on a device run: what one stream computes, another may read too early. 0 on a CPU."""
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def _owner(x: Tensor) -> Tensor:
    """The tensor whose life is that of the memory."""
    return x if x._base is None else x._base


@dataclass(slots=True)
class TileTables:
    """The newest tables of one planning kernel."""

    library: PlanLibrary
    entries: list[_Entry] = field(default_factory=list)

    def table(
        self,
        sizes: Sizes,
        q_start: int,
        numbers: Mapping[str, float],
        tensors: Mapping[str, Tensor],
    ) -> TileTable | None:
        """The table of a call; None where the call is too small to gain by one."""
        if sizes.queries * sizes.keys < _FEWEST_PAIRS:
            return None
        plan = self.library.plan
        read = [tensors[t.name] for t in plan.tensors]
        key = (
            sizes,
            q_start,
            *(numbers[p.name] for p in plan.params),
            *((x.shape, x.stride(), x.dtype) for x in read),
        )
        for entry in self.entries:
            if entry.key == key and all(
                c.same(x) for c, x in zip(entry.contents, read, strict=True)
            ):
                return entry.table
        tile = _tile(sizes, plan)
        states, _ = self.library(sizes, q_start, numbers, tensors, tile)
        table = TileTable(states, tile)
        entry = _Entry(key, tuple(map(Content.of, read)), table)
        self.entries = [entry, *self.entries[: _MOST_TABLES - 1]]
        return table


def _tile(sizes: Sizes, plan: PlanSignature) -> tuple[int, int]:
    """The finest tiles of which there are not too many."""
    problems = (sizes.batch if plan.by_batch else 1) * (sizes.heads if plan.by_head else 1)
    side = _SIDE
    while problems * (-(-sizes.queries // side)) * (-(-sizes.keys // side)) > _MOST_TILES:
        side *= 2
    return side, side


def readable(x: Tensor) -> Tensor:
    """A tensor that clamped indices can always read: an empty one becomes a single zero seen at every index.

    No axis of that is empty, for torch gives a tensor without elements no address.
    """
    if x.numel():
        return x
    return x.new_zeros(1).as_strided([max(n, 1) for n in x.shape], (0,) * x.dim())
