"""Turns a mask on flat positions into one on the numbers it reads them by: blocks, or rows and columns of a grid.

A mask that reads queries as ``q // 8`` alone is a mask on blocks of 8. One that reads ``q // 8`` and ``q % 8`` is a
mask on the digits of q, and a range of flat positions is the rest of its first row, the whole rows between and the
beginning of its last row: three boxes of digits. Sets of digits need no quotients, so they are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

from attncompiler.ir.expr import (
    Axis,
    Call,
    Const,
    Expr,
    Index,
    Local,
    Param,
    axes_of,
    children,
    rewrite,
    substitute,
    walk,
)
from attncompiler.ir.integer_sets import LIMIT, Position
from attncompiler.ir.linear import total
from attncompiler.ir.passes.canonicalize import make, simplify

AXES: tuple[Axis, ...] = ("q", "k", "h")
Term = tuple[int, int | None]
Limits = dict[int, tuple[Expr, Expr]]


@dataclass(frozen=True, slots=True)
class Box:
    """A box of positions; it exists if ``exists``. ``corners`` gives the corners as formulas of the flat ones."""

    exists: Expr
    corners: dict[Expr, Expr]

    def of(self, expr: Expr) -> Expr:
        """A condition on corners, for this box."""
        return rewrite(expr, simplify, dict(self.corners))


@dataclass(frozen=True, slots=True)
class Reading:
    """A mask on positions, and the boxes of positions that a box of flat positions consists of.

    ``blocks`` are the sizes of blocks along axes read by the number of a block alone; ``grid`` is an axis of several
    digits. ``origins`` gives places as formulas of flat positions.
    """

    mask: Expr
    positions: tuple[Position, ...]
    boxes: tuple[Box, ...]
    blocks: dict[str, int]
    grid: str
    origins: dict[Expr, Expr]


def read(mask: Expr) -> Reading:
    """How a mask reads positions."""
    positions: list[Position] = []
    choices: list[list[Box]] = []
    blocks: dict[str, int] = {}
    grid = ""
    origins: dict[Expr, Expr] = {}
    for axis in AXES if "h" in axes_of(mask) else AXES[:2]:
        index = Index(axis)
        flat = Position(index, *flat_corners(axis))
        terms = dict(_terms(mask, index))
        ends = {end for term in terms.values() for end in term if end is not None}
        if set(terms.values()) == {(min(ends, default=1), None)}:
            size = blocks[axis] = ends.pop()
            mask = substitute(mask, dict.fromkeys(terms, index))
            origins[index] = make("floordiv", index, Const(size))
            positions.append(flat)
            choices.append([_block_box(flat, size)])
        elif _is_grid(terms.values(), ends):
            grid = axis
            places, boxes = _digits(flat, sorted(ends))
            mask = substitute(mask, {n: _value(t, sorted(ends), places) for n, t in terms.items()})
            positions += places
            choices.append(boxes)
            starts = [1, *sorted(e for e in ends if e > 1)]
            origins |= {p.place: _digit(index, starts, n) for n, p in enumerate(places)}
        else:
            positions.append(flat)
            choices.append([Box(Const(True), {})])
    joined = tuple(map(_joined, product(*choices)))
    return Reading(mask, tuple(positions), joined, blocks, grid, origins)


def flat_corners(axis: str) -> tuple[Param, Param]:
    """The first and the last position of a box along an axis."""
    return Param(f"{axis}_lo", "int"), Param(f"{axis}_hi", "int")


def _terms(mask: Expr, index: Expr) -> Iterator[tuple[Expr, Term]]:
    """The quotients and remainders by which a mask reads an index: ``index % end // start``."""
    users: dict[Expr, list[Expr]] = {}
    for node in walk(mask):
        for child in dict.fromkeys(children(node)):
            users.setdefault(child, []).append(node)
    for user in users.get(index, []):
        match user:
            case Call("floordiv", (x, Const(int() as size))) if x is index and size > 0:
                plain = False
                for outer in users.get(user, [mask]):
                    match outer:
                        case Call("mod", (y, Const(int() as count))) if y is user and count > 0:
                            yield outer, (size, size * count)
                        case _:
                            plain = True
                if plain:
                    yield user, (size, None)
            case Call("mod", (x, Const(int() as size))) if x is index and size > 0:
                yield user, (1, size)
            case _:
                yield index, (1, None)


def _is_grid(terms: Iterable[Term], ends: set[int]) -> bool:
    """Whether terms are sums of digits, one digit above another."""
    found = set(terms)
    starts = {start for start, _ in found}
    return (
        (1, None) not in found
        and any(end in starts for _, end in found)
        and all(b % a == 0 for a, b in pairwise(sorted(ends)))
    )


def _block_box(flat: Position, size: int) -> Box:
    corners: dict[Expr, Expr] = {c: make("floordiv", c, Const(size)) for c in (flat.lo, flat.hi)}
    return Box(Const(True), corners if size > 1 else {})


def _digits(flat: Position, ends: list[int]) -> tuple[list[Position], list[Box]]:
    """The positions of the digits, the lowest first, and the boxes of a flat range."""
    starts = [1, *(e for e in ends if e > 1)]
    axis = flat.name
    sizes = [b // a for a, b in pairwise(starts)]
    places = [
        Position(
            Local(f"{axis}{n}", "int", axis),
            Param(f"{axis}{n}_lo", "int"),
            Param(f"{axis}{n}_hi", "int"),
            sizes[n] if n < len(sizes) else LIMIT,
        )
        for n in range(len(starts))
    ]
    low, high = ([_digit(c, starts, n) for n in range(len(starts))] for c in (flat.lo, flat.hi))
    boxes = []
    last: list[Expr] = [Const(size - 1) for size in sizes]
    for exists, limits in _ranges(low, high, last):
        corners: dict[Expr, Expr] = {}
        for n, (lo, hi) in limits.items():
            corners |= {places[n].lo: lo, places[n].hi: hi}
        boxes.append(Box(exists, corners))
    return places, boxes


def _digit(flat: Expr, starts: list[int], number: int) -> Expr:
    above = make("floordiv", flat, Const(starts[number]))
    if number + 1 == len(starts):
        return above
    return make("mod", above, Const(starts[number + 1] // starts[number]))


def _ranges(low: list[Expr], high: list[Expr], last: list[Expr]) -> Iterator[tuple[Expr, Limits]]:
    """Boxes of digits that make up all numbers from one to another; ``last`` are the largest lower digits."""
    top = len(low) - 1
    first, final = low[top], high[top]
    if top == 0:
        yield Const(True), {0: (first, final)}
        return
    one = Const(1)
    zeros: list[Expr] = [Const(0)] * top
    whole: Limits = {n: (Const(0), last[n]) for n in range(top)}
    if first is Const(0) and all(x is Const(0) for x in low):
        before = make("sub", final, one)
        yield make("ge", before, Const(0)), whole | {top: (first, before)}
    else:
        same = make("eq", first, final)
        until = [make("where", same, high[n], last[n]) for n in range(top)]
        for exists, limits in _ranges(low[:top], until, last[: top - 1]):
            yield exists, limits | {top: (first, first)}
        after, before = make("add", first, one), make("sub", final, one)
        yield make("le", after, before), whole | {top: (after, before)}
    later: Expr = make("lt", first, final)
    if first is Const(0) and all(x is Const(0) for x in low):
        later = Const(True)
    for exists, limits in _ranges(zeros, high[:top], last[: top - 1]):
        yield make("and", later, exists), limits | {top: (final, final)}


def _value(term: Term, ends: list[int], places: list[Position]) -> Expr:
    """A term as a sum of digits."""
    starts = [1, *(e for e in ends if e > 1)]
    start, end = term
    return total(
        (place.place, at // start)
        for at, place in zip(starts, places, strict=True)
        if at >= start and (end is None or at < end)
    )


def _joined(boxes: tuple[Box, ...]) -> Box:
    exists: Expr = Const(True)
    corners: dict[Expr, Expr] = {}
    for box in boxes:
        exists = make("and", exists, box.exists)
        corners |= box.corners
    return Box(exists, corners)
