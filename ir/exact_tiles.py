"""Turns a mask into tile conditions that are proved exact, and into spans, by algebra on sets of integer points.

The pairs of a mask within a box of symbolic corners, projected onto the corners, are exactly the boxes that hold an
allowed pair; the same with the opposite of the mask gives the boxes that are not full. Where the short conditions of
interval analysis describe the same boxes they are kept; else the projection itself is printed, if it is short enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from attncompiler.ir.expr import (
    Call,
    Const,
    Expr,
    Index,
    Size,
    axes_of,
    children,
    kind_of,
    substitute,
    walk,
)
from attncompiler.ir.integer_sets import AXES, POSITIONS, Refusal, Sets, Universe
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.set_formulas import LARGEST, formula
from attncompiler.ir.spans import Span, spans
from attncompiler.ir.tiles import CORNERS, TileClass, TileSet, negation, tile_class

if TYPE_CHECKING:
    import islpy

T = TypeVar("T")
_MOST_OPERATIONS = 400_000  # of isl, for one question: some ten milliseconds
_MOST_PIECES = 40
_TOO_MANY = "its integer sets have too many pieces"


def exact_tiles(mask: Expr) -> TileSet:
    """What ``tiles.tile_set`` returns."""
    import islpy

    try:
        coarse, sizes = _coarsened(mask)
        question = _Question.of(islpy.Context(), coarse)
        conditions = question.conditions()
    except Refusal as refusal:
        found = tile_class(mask)
        return TileSet(found.possible, found.certain, False, str(refusal), None, None, str(refusal))
    back = {
        corner: make("floordiv", corner, Const(size))
        for axis, size in sizes.items()
        for corner in CORNERS[axis]
    }
    possible, certain = (substitute(e, back) for e in (conditions.possible, conditions.certain))
    ranges: list[tuple[Span, ...] | None] = []
    reason = ""
    for axis in ("k", "q"):
        try:
            found = question.spans(axis)
            ranges.append(
                tuple(s.scaled(sizes.get(axis, 1)).replaced(back) for s in found)
            )
        except Refusal as refusal:
            ranges.append(None)
            what = "keys of a query tile" if axis == "k" else "queries of a key tile"
            reason = reason or f"the {what} have no short list of ranges: {refusal}"
    return TileSet(
        possible,
        certain,
        not question.reason,
        question.reason,
        ranges[0],
        ranges[1],
        reason,
        question.small(),
    )


def _coarsened(mask: Expr) -> tuple[Expr, dict[str, int]]:
    """The mask over blocks, along axes that it reads by the number of a block alone, and the sizes of the blocks."""
    sizes: dict[str, int] = {}
    for axis in AXES:
        index = Index(axis)  # type: ignore[arg-type]
        users = {n for n in walk(mask) if index in children(n)}
        found = {_block(n, index) for n in users}
        if len(found) == 1 and (size := found.pop()) > 1:
            sizes[axis] = size
            mask = substitute(mask, {n: index for n in users})
    return mask, sizes


def _block(user: Expr, index: Expr) -> int:
    match user:
        case Call("floordiv", (x, Const(int() as size))) if x is index and size > 0:
            return size
        case _:
            return 0


@dataclass(slots=True)
class _Question:
    """A mask with its universe; ``reason`` says why an answer is not exact."""

    context: islpy.Context
    mask: Expr
    interval: TileClass
    points: Sets
    boxes: Sets
    given: islpy.Set
    reason: str = ""

    @staticmethod
    def of(context: islpy.Context, mask: Expr) -> _Question:
        interval = tile_class(mask)
        corners = [c for axis in AXES for c in CORNERS[axis]]
        universe = Universe.of(context, corners, mask, interval.possible, interval.certain)
        points, boxes = Sets(universe, AXES), Sets(universe, ())
        return _Question(context, mask, interval, points, boxes, _given(boxes))

    def conditions(self) -> TileClass:
        """Both conditions on a box; they read what the mask and its interval analysis read."""
        possible = self._answer(True, self.interval.possible)
        return TileClass(possible, negation(self._answer(False, negation(self.interval.certain))))

    def _answer(self, truth: bool, interval: Expr) -> Expr:
        """Whether some pair of a box has the given truth; ``interval`` is a condition that holds whenever one has."""
        exact = self._limited(lambda: self._projected(truth))
        names = self.boxes.universe.parameters()
        pieces = exact.n_basic_set()
        own = formula(exact, names) if pieces <= _MOST_PIECES else None
        small = self.small()
        if own is not None and small is Const(True) and _length(own) < _length(interval):
            return own
        try:
            inside = self._limited(lambda: self.boxes.where(interval) & self.given)
            if self._limited(lambda: inside.is_subset(exact)):
                return interval
        except Refusal:
            pass  # the interval condition is not one that can be compared
        if own is None:
            what = "hold no pair" if truth else "are full"
            self.reason = self.reason or f"which tiles {what} has {pieces} cases"
            return interval
        if small is Const(True):
            return own
        return make("and", interval, make("or", make("not", small), own))

    def _projected(self, truth: bool) -> islpy.Set:
        """The boxes that hold a pair with the given truth."""
        pairs = self.points.where(self.mask, truth)
        for axis in AXES:
            pairs = pairs & self._within(axis)
        return pairs.params().compute_divs().coalesce().gist(self.given)

    def _within(self, axis: str) -> islpy.Set:
        index, (lo, hi) = Index(axis), CORNERS[axis]  # type: ignore[arg-type]
        return self.points.where(make("ge", index, lo)) & self.points.where(make("le", index, hi))

    def spans(self, axis: str) -> tuple[Span, ...]:
        """The positions along an axis that are met by some pair of a box, as formulas of its other corners."""
        import islpy

        if "h" in axes_of(self.mask):
            raise Refusal("the mask reads the head")
        other, place = ("q", 1) if axis == "k" else ("k", 0)

        def project() -> tuple[Span, ...]:
            pairs = self.points.where(self.mask) & self._within(other)
            pairs &= self.points.where(make("ge", Index(axis), Const(0)))  # type: ignore[arg-type]
            found = pairs.project_out(islpy.dim_type.set, place + 1, 2 - place)
            found = found.project_out(islpy.dim_type.set, 0, place)
            found = found.compute_divs().coalesce().gist_params(self.given)
            return spans(found, self.given, self.boxes.universe.parameters(), axis)

        return self._limited(project)

    def small(self) -> Expr:
        """Whether all run-time numbers are within what formulas can bear; lengths are."""
        found: Expr = Const(True)
        for atom in self.boxes.universe.atoms:
            if kind_of(atom) == "int" and not isinstance(atom, Size | Index):
                found = make("and", found, make("lt", make("abs", atom), Const(LARGEST)))
        return found

    def _limited(self, work: Callable[[], T]) -> T:
        import islpy

        self.context.reset_operations()
        self.context.set_max_operations(_MOST_OPERATIONS)
        try:
            return work()
        except islpy.Error as error:
            if "operations" not in str(error):
                raise
            raise Refusal(_TOO_MANY) from None
        finally:
            self.context.set_max_operations(0)


def _given(boxes: Sets) -> islpy.Set:
    """What holds for the corners of every tile and for the lengths."""
    found = boxes.everything
    atoms = boxes.universe.atoms
    for axis, length in (("q", "M"), ("k", "N"), ("h", "H")):
        lo, hi = CORNERS[axis]
        for x, y in ((Const(0), lo), (lo, hi), (hi, Const(POSITIONS - 1))):
            found = found & boxes.where(make("le", x, y))
        size = Size(length)  # type: ignore[arg-type]
        if size in atoms and axis != "q":
            found = found & boxes.where(make("lt", hi, size))
    for atom in atoms:
        if isinstance(atom, Size):
            found = found & boxes.where(make("le", Const(1), atom))
            found = found & boxes.where(make("le", atom, Const(POSITIONS)))
        if kind_of(atom) == "bool":
            number = boxes.places[atom]
            found = found & number.ge_set(boxes.number(0)) & number.le_set(boxes.number(1))
    return found


def _length(expr: Expr) -> int:
    return sum(1 for _ in walk(expr))
