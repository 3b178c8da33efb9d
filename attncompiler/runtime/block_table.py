"""Block lists of one call: turns a BlockSparse into a table of listed blocks, and a program into one that obeys it.

A table is int8 ``[1 or B, 1 or G or H, blocks of queries, blocks of keys]``, 1 where a block is listed. It joins the
mask of the program as one more tensor, so tiles of blocks that are not listed are skipped, forward and backward, and
nothing else of the compilation changes. A program is compiled once for a size of blocks and a choice of leading axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn, cast

import torch
from torch import Tensor

from attncompiler import errors
from attncompiler.block_lists import Content, contents_of
from attncompiler.block_sparse import BlockSparse
from attncompiler.declarations import Tensor as Declared
from attncompiler.frontend import Trace, definition_of
from attncompiler.ir.expr import Axis, Const, Expr, Index, Load
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.passes.lower import ROW
from attncompiler.ir.program import TensorDecl
from attncompiler.runtime.call_checks import check_storage, check_transforms
from attncompiler.runtime.errors import BlockListError
from attncompiler.runtime.launch import is_plain
from attncompiler.runtime.registration import LIBRARY

Heads = Literal["", "g", "h"]


@dataclass(frozen=True, slots=True)
class Form:
    """What of block lists is fixed at compilation: the size of blocks, and what tells lists apart beside their row."""

    block: tuple[int, int]
    batch: bool
    heads: Heads


def form_of(sparsity: BlockSparse, q: Tensor, k: Tensor) -> Form:
    """The form of the lists of a call on q ``[B, H, M, D]`` and k ``[B, G, N, D]`` that ``table_of`` accepts."""
    batches, lists, _ = _leading(sparsity.counts)
    return Form(
        sparsity.size, batches != 1, "" if lists == 1 else "g" if lists == k.shape[1] else "h"
    )


def table_of(sparsity: BlockSparse, q: Tensor, k: Tensor) -> Tensor:
    """The table of a call on q ``[B, H, M, D]`` and k ``[B, G, N, D]``; made once while the lists stay the same.

    Raises ShapeError or DeviceError for lists that do not fit the shapes, BlockListError for entries that name no block
    of keys, or one twice.
    """
    lists = sparsity.indices, sparsity.counts
    sizes = (q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2])
    if torch.compiler.is_compiling():
        return cast(Tensor, torch.ops.attncompiler.block_table(*lists, sparsity.size, sizes))
    for name, x in zip(("sparsity.indices", "sparsity.counts"), lists, strict=True):
        check_storage(name, x, q.device)
        check_transforms(name, x)
    if not is_plain(lists):
        return cast(Tensor, torch.ops.attncompiler.block_table(*lists, sparsity.size, sizes))
    _check_shape(sparsity.counts, sparsity.size[0], sizes)
    known: _Known | None = sparsity.__dict__.get("_known")
    contents, columns = contents_of(lists, q.device), -(-k.shape[2] // sparsity.size[1])
    if known is None or not known.holds(contents, columns):
        known = _Known(contents, columns, _read(*lists, columns))
        object.__setattr__(sparsity, "_known", known)
    return known.table


def check_sparsity(sparsity: object) -> None:
    """Raise ArgumentsError unless it is a BlockSparse."""
    if not isinstance(sparsity, BlockSparse):
        raise errors.ArgumentsError(
            name="sparsity",
            detail=f"expected a BlockSparse, got a {type(sparsity).__name__}",
            fix="give BlockSparse(indices, counts, block); a BlockMask of torch goes to flex_attention",
        )


def _leading(counts: Tensor) -> tuple[int, int, int]:
    """For how many batches, heads and blocks of queries there are lists."""
    batches, heads, rows = (*(1,) * (3 - counts.dim()), *counts.shape)
    return batches, heads, rows


def _check_shape(counts: Tensor, rows_of_block: int, sizes: Sequence[int]) -> None:
    """Raise ShapeError when there are not as many lists as a call of sizes B, H, G, M, N needs."""
    (batch, heads, groups, queries, _), (batches, lists, rows) = sizes, _leading(counts)

    def refuse(detail: str, fix: str) -> NoReturn:
        raise errors.ShapeError(name="sparsity", detail=detail, fix=fix)

    if batches not in (1, batch):
        refuse(
            f"it has lists for {batches} batches, the call has {batch}",
            "give lists for each batch, or for one that hold for all",
        )
    if lists not in (1, groups, heads):
        refuse(
            f"it has lists for {lists} heads, the call has {heads} in {groups} groups",
            "give lists for each head, for each group of heads, or for one that hold for all",
        )
    wanted = -(-queries // rows_of_block)
    if rows != wanted:
        refuse(
            f"it has lists for {rows} blocks of queries, the call has {wanted}: {queries} queries in blocks of "
            f"{rows_of_block}",
            "give one list for each block of queries; blocks count the rows of the call, whatever q_start is",
        )


@dataclass(frozen=True, slots=True)
class _Known:
    """A table, and what tells whether it still says what the lists say."""

    contents: tuple[Content, ...]
    columns: int
    table: Tensor

    def holds(self, contents: tuple[Content, ...], columns: int) -> bool:
        return self.columns == columns and all(
            torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
            for a, b in zip(self.contents, contents, strict=True)
        )


def _read(indices: Tensor, counts: Tensor, columns: int) -> Tensor:
    """The table, after checking each entry of each list."""
    while indices.dim() < 4:
        indices, counts = indices[None], counts[None]
    most, indices, counts = indices.shape[3], indices.long(), counts.long()
    wrong = (counts < 0) | (counts > most)
    if wrong.any():
        place = _first(wrong)
        _refuse(
            place,
            f"has the length {int(counts[place])}, its storage holds {most} entries",
            "counts say how many entries of each list hold, from 0 up",
        )
    named = torch.arange(most, device=counts.device) < counts[..., None]
    outside = named & ((indices < 0) | (indices >= columns))
    if outside.any():
        at = _first(outside)
        _refuse(
            at[:3],
            f"names block {int(indices[at])}, there are {columns} blocks of keys",
            "blocks of keys count from 0; entries that stand for none belong behind the end of a list",
        )
    shape = (*indices.shape[:3], columns + 1)
    found = torch.zeros(shape, dtype=torch.int8, device=indices.device)
    found = found.scatter_(3, torch.where(named, indices, columns), 1)[..., :columns].contiguous()
    repeated = found.sum(-1) != counts
    if repeated.any():
        place = _first(repeated)
        entries = indices[place][: int(counts[place])].sort().values
        twice = int(entries[1:][entries.diff() == 0][0])
        _refuse(place, f"names block {twice} twice", "a list names different blocks")
    return found


def _first(wrong: Tensor) -> tuple[int, ...]:
    return tuple(wrong.nonzero()[0].tolist())


def _refuse(place: tuple[int, ...], detail: str, fix: str) -> NoReturn:
    batch, head, row = place
    raise BlockListError(batch=batch, head=head, row=row, detail=detail, fix=fix)


def _table(indices: Tensor, counts: Tensor, block: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """The op: the table of a traced call, whose lists are checked when it runs."""
    _check_shape(counts, block[0], sizes)
    return _read(indices, counts, -(-sizes[4] // block[1]))


def _fake_table(
    indices: Tensor, counts: Tensor, block: Sequence[int], sizes: Sequence[int]
) -> Tensor:
    _check_shape(counts, block[0], sizes)
    shape = (*_leading(counts), -(-sizes[4] // block[1]))
    return indices.new_empty(shape, dtype=torch.int8)


LIBRARY.define("block_table(Tensor indices, Tensor counts, int[] block, SymInt[] sizes) -> Tensor")
for _device in ("CPU", "CUDA"):
    LIBRARY.impl("block_table", _table, _device)
torch.library.register_fake("attncompiler::block_table", _fake_table, lib=LIBRARY)


def restricted(trace: Trace, form: Form) -> tuple[Trace, str]:
    """The trace of the same variant whose mask allows pairs of listed blocks only, and the name of the table."""
    program = trace.program
    name = "listed"
    while name in trace.tensors or name in trace.params or name in trace.variant._tensors:
        name += "_"
    first: tuple[tuple[Axis | Literal[""], bool], ...] = (
        ("b", form.batch),
        (form.heads, bool(form.heads)),
    )
    axes = (
        *(axis if own else 1 for axis, own in first),
        f"{name}_rows",
        f"{name}_columns",
    )
    declaration = TensorDecl(name, axes, "int")
    leading = (Index(cast(Axis, axis)) if own else Const(0) for axis, own in first)
    positions: tuple[Expr, Expr] = ROW, Index("k")
    blocks = (
        make("floordiv", position, Const(size))
        for position, size in zip(positions, form.block, strict=True)
    )
    state: Expr = Load(name, (*leading, *blocks), "int")
    mask = make("and", program.mask, make("ne", state, Const(0)))
    changed = replace(program, mask=mask, tensors=(*program.tensors, declaration))
    tensors = trace.tensors | {name: Declared(*axes, dtype=torch.int8)}
    call = f"sparsity=BlockSparse(..., block={form.block})"
    definition = (
        f"{definition_of(trace).rstrip()}\n\n# Called with {call}: pairs of listed blocks only.\n"
    )
    origin = f"a call of attncompiler.compile({type(trace.variant).__name__}) with {call}"
    return (
        replace(trace, program=changed, tensors=tensors, definition=definition, origin=origin),
        name,
    )
