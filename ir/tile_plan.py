"""Turns a mask that reads tensors into a plan for classifying tiles: bounds of what each tile reads, then conditions.

The part of a mask that index arithmetic decides is a condition on the corners of a tile (``ir/tiles.py``). What is
left reads tensors: ``ids[q] == ids[k]``, ``q < death[k]``. A plan names the values of such a mask that belong to a
query or to a key alone. A planning kernel finds the smallest and the largest of each in every tile, and the conditions,
which now read those bounds as well, say which tiles are empty and which are full; only the others are enumerated. The
result is one state a tile. Example: ``ids[q] == ids[k]`` is possible when ``row0_lo <= key0_hi`` and ``key0_lo <=
row0_hi``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attncompiler.ir.expr import (
    Call,
    Const,
    Expr,
    Index,
    Load,
    Local,
    Param,
    axes_of,
    children,
    kind_of,
    substitute,
    walk,
)
from attncompiler.ir.intervals import Range
from attncompiler.ir.kernel import Let
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.passes.lower import flatten_loads
from attncompiler.ir.program import ParamDecl, Program, TensorDecl
from attncompiler.ir.tiles import tile_class

HEAD = Local("head", "int", "")


@dataclass(frozen=True, slots=True)
class TilePlan:
    """What a planning kernel computes for each tile of one batch and query head.

    ``rows`` and ``keys`` are the values, all of kind int, whose bounds in a tile are found first; ``x`` has the bounds
    ``bound(x, "lo")`` and ``bound(x, "hi")``. ``possible`` and ``certain`` read corners and bounds, ``mask`` decides a
    pair. ``by_batch`` and ``by_head`` say whether batches and heads differ. Loads have one index, the clamped offset.
    """

    rows: tuple[Let, ...]
    keys: tuple[Let, ...]
    possible: Expr
    certain: Expr
    mask: Expr
    by_batch: bool
    by_head: bool
    params: tuple[ParamDecl, ...]
    tensors: tuple[TensorDecl, ...]


def bound(local: Local, end: str) -> Local:
    """The smallest (``lo``) or the largest (``hi``) value in a tile."""
    return Local(f"{local.name}_{end}", "int", "")


def plan_tiles(program: Program) -> TilePlan:
    """The plan of a program's mask."""
    mask = program.mask
    rows, keys = _Values("row", "bghq"), _Values("key", "bghk")
    read = _with_values(mask, rows, keys)
    known: dict[Expr, Range] = {
        local: Range(bound(local, "lo"), bound(local, "hi"))
        for values in (rows, keys)
        for local in values.table.values()
    }
    # One head at a time: what depends on the head alone is the same for the whole tile.
    tiles = tile_class(substitute(read, {Index("h"): HEAD}), values=known)
    declared = {t.name: t for t in program.tensors}

    def flat(expr: Expr) -> Expr:
        return flatten_loads(expr, declared)

    axes = axes_of(mask)
    lets = [(let.local, flat(let.expr)) for values in (rows, keys) for let in values.lets()]
    possible, certain = flat(tiles.possible), flat(tiles.certain)
    everything = [flat(mask), possible, certain, *(e for _, e in lets)]
    used = {n.tensor for n in walk(*everything) if isinstance(n, Load)}
    names = {n.name for n in walk(*everything) if isinstance(n, Param)}
    return TilePlan(
        rows=tuple(Let(x, e) for x, e in lets if x.axes == rows.axes),
        keys=tuple(Let(x, e) for x, e in lets if x.axes == keys.axes),
        possible=possible,
        certain=certain,
        mask=flat(mask),
        by_batch="b" in axes,
        by_head=bool(axes & {"h", "g"}),
        params=tuple(p for p in program.params if p.name in names),
        tensors=tuple(t for t in program.tensors if t.name in used),
    )


def values_of(mask: Expr) -> list[Expr]:
    """The values, each of a query or of a key alone, whose bounds in a tile a plan for the mask finds."""
    rows, keys = _Values("row", "bghq"), _Values("key", "bghk")
    _with_values(mask, rows, keys)
    return [*rows.table, *keys.table]


class _Values:
    """Values of one axis that read tensors, each under a name of its own."""

    def __init__(self, prefix: str, axes: str) -> None:
        self.prefix, self.axes = prefix, axes
        self.table: dict[Expr, Local] = {}

    def fits(self, expr: Expr) -> bool:
        """Whether a value belongs to this axis, reads a tensor there, and is no floating number."""
        axes = axes_of(expr)
        return (
            self.axes[-1] in axes
            and axes <= set(self.axes)
            and kind_of(expr) != "float"
            and any(isinstance(n, Load) and self.axes[-1] in axes_of(n) for n in walk(expr))
        )

    def name(self, expr: Expr) -> Expr:
        if expr not in self.table:
            self.table[expr] = Local(f"{self.prefix}{len(self.table)}", "int", self.axes)
        local = self.table[expr]
        return make("ne", local, Const(0)) if kind_of(expr) == "bool" else local

    def lets(self) -> Iterator[Let]:
        for expr, local in self.table.items():
            yield Let(local, make("to_int", expr) if kind_of(expr) == "bool" else expr)


def _with_values(mask: Expr, rows: _Values, keys: _Values) -> Expr:
    """The mask with the largest subexpressions that belong to a query or to a key replaced by names."""
    memo: dict[Expr, Expr] = {}

    def replaced(expr: Expr) -> Expr:
        if expr not in memo:
            for values in (rows, keys):
                if values.fits(expr):
                    memo[expr] = values.name(expr)
                    break
            else:
                memo[expr] = _rebuilt(expr, tuple(replaced(c) for c in children(expr)))
        return memo[expr]

    return replaced(mask)


def _rebuilt(expr: Expr, parts: tuple[Expr, ...]) -> Expr:
    match expr:
        case Call(op):
            return make(op, *parts)
        case Load(tensor, _, kind):
            return Load(tensor, parts, kind)
        case _:
            return expr
