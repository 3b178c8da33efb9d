"""Turns a mask into tile conditions that are proved exact, and into spans, by algebra on sets of integer points.

The pairs of a mask within a box of symbolic corners, projected onto the corners, are exactly the boxes that hold an
allowed pair; the same with the opposite of the mask gives the boxes that are not full. Where the short conditions of
interval analysis describe the same boxes they are kept; else the projection itself is printed, if it is short enough.
Without an answer the conditions of interval analysis remain, and a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from attncompiler.ir.digits import Reading, read
from attncompiler.ir.expr import (
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
from attncompiler.ir.integer_sets import LIMIT, RefusalError, Sets, Universe
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.set_formulas import LARGEST, formula
from attncompiler.ir.spans import Span, spans
from attncompiler.ir.tiles import TileClass, TileSet, negation, tile_class

if TYPE_CHECKING:
    import islpy

T = TypeVar("T")
_MOST_OPERATIONS = 50_000  # of isl, for one question: ten milliseconds or two
_FEW_PIECES, _MOST_PIECES, _LONGEST = 5, 40, 1500
_TOO_MANY = "the sets of its pairs have too many pieces"


def exact_tiles(mask: Expr) -> TileSet:
    """What ``tiles.tile_set`` returns."""
    reading = read(mask)
    try:
        question = _Question.of(reading)
        conditions, reason = question.conditions()
    except RefusalError as refusal:
        reason = _told(refusal, reading)
        found = tile_class(mask)
        return TileSet(found.possible, found.certain, False, reason, no_spans=reason)
    length = len(reading.boxes) * max(_length(conditions.possible), _length(conditions.certain))
    if length > _LONGEST:
        reason = reason or f"its conditions on rows and columns have {length} operations"
    if reading.grid and reason:
        conditions = tile_class(mask)
        possible, certain = conditions.possible, conditions.certain
    else:
        possible, certain = _over_boxes(reading, conditions)
    keys, no_keys = _spans(question, "k")
    queries, no_queries = _spans(question, "q")
    return TileSet(
        possible,
        certain,
        not reason,
        reason,
        keys,
        queries,
        no_keys or no_queries,
        question.small(),
    )


def _over_boxes(reading: Reading, conditions: TileClass) -> tuple[Expr, Expr]:
    """The conditions on a box of flat positions, which consists of several boxes."""
    if len(reading.boxes) == 1:
        box = reading.boxes[0]
        return box.of(conditions.possible), box.of(conditions.certain)
    possible, certain = Const(False), Const(True)
    some: Expr = possible
    every: Expr = certain
    for box in reading.boxes:
        some = make("or", some, make("and", box.exists, box.of(conditions.possible)))
        every = make("and", every, make("or", negation(box.exists), box.of(conditions.certain)))
    return some, every


def _told(refusal: RefusalError, reading: Reading) -> str:
    part = refusal.part
    if part is None:
        return str(refusal)
    return str(RefusalError(refusal.problem, substitute(part, reading.origins)))


def _spans(question: _Question, axis: str) -> tuple[tuple[Span, ...] | None, str]:
    """The spans along an axis, or None and why."""
    reading = question.reading
    what = "keys of a query tile" if axis == "k" else "queries of a key tile"
    try:
        found = question.spans(axis)
    except RefusalError as refusal:
        return None, f"the {what} are no short list of ranges: {_told(refusal, reading)}"
    corners, size = reading.boxes[0].corners, reading.blocks.get(axis, 1)
    return tuple(s.scaled(size).mapped(lambda e: substitute(e, dict(corners))) for s in found), ""


@dataclass(slots=True)
class _Question:
    """A mask on positions with its universe; ``given`` holds for the corners of every box."""

    reading: Reading
    interval: TileClass
    points: Sets
    boxes: Sets
    given: islpy.Set

    @staticmethod
    def of(reading: Reading) -> _Question:
        import islpy

        positions = reading.positions
        interval = tile_class(reading.mask, {p.name: (p.lo, p.hi) for p in positions})
        roots = (reading.mask, interval.possible, interval.certain)
        universe = Universe.of(islpy.Context(), positions, roots)
        boxes = Sets(universe, ())
        return _Question(reading, interval, Sets(universe, positions), boxes, _given(boxes))

    def conditions(self) -> tuple[TileClass, str]:
        """Both conditions on a box, and why they are not exact."""
        impossible = negation(self.interval.certain)
        possible, empty = self._answer(True, self.interval.possible)
        partial, full = self._answer(False, impossible)
        certain = self.interval.certain if partial is impossible else negation(partial)
        return TileClass(possible, certain), empty or full

    def _answer(self, truth: bool, interval: Expr) -> tuple[Expr, str]:
        """Whether some pair of a box has the given truth; ``interval`` is a condition that holds whenever one has."""
        exact = self._limited(lambda: self._projected(truth))
        names = self.boxes.universe.parameters()
        pieces = exact.n_basic_set()
        small = self.small()
        if small is Const(True) and pieces <= _FEW_PIECES:
            own = formula(exact, names)
            if _length(own) < _length(interval):
                return own, ""
        if self._proved(interval, exact):
            return interval, ""
        if pieces > _MOST_PIECES:
            what = "are empty" if truth else "are full"
            return interval, f"the condition for tiles that {what} has {pieces} cases"
        own = formula(exact, names)
        if small is Const(True):
            return own, ""
        return make("and", interval, make("or", make("not", small), own)), ""

    def _proved(self, interval: Expr, exact: islpy.Set) -> bool:
        """Whether all boxes that pass the condition are in the set, for bearable numbers; no when that takes long."""
        if self.boxes.universe.tested is not None:
            return False
        try:
            bearable = make("and", interval, self.small())
            inside = self._limited(lambda: self.boxes.where(bearable) & self.given)
            return self._limited(lambda: bool(inside.is_subset(exact)))
        except RefusalError:
            return False

    def _projected(self, truth: bool) -> islpy.Set:
        """The boxes that hold a pair with the given truth."""
        import islpy

        pairs = self.points.where(self.reading.mask, truth)
        for place in self.reading.positions:
            pairs = pairs & self._within(place.name)
        if self.boxes.universe.tested is None:
            return pairs.params().compute_divs().coalesce().gist(self.given)
        pairs &= self.points.power().ge_set(self.points.number(1))
        pairs = pairs.project_out(islpy.dim_type.set, 0, len(self.reading.positions))
        return pairs.compute_divs().coalesce().gist_params(self.given)

    def _within(self, name: str) -> islpy.Set:
        at = next(p for p in self.reading.positions if p.name == name)
        above = self.points.where(make("ge", at.place, at.lo))
        return above & self.points.where(make("le", at.place, at.hi))

    def spans(self, axis: str) -> tuple[Span, ...]:
        """The positions along an axis that are met by some pair of a box, as formulas of its other corners."""
        if self.reading.grid:
            raise RefusalError(f"the mask reads rows and columns of {self.reading.grid}")
        if "h" in axes_of(self.reading.mask):
            raise RefusalError("the mask reads the head")
        if self.boxes.universe.tested is not None:
            raise RefusalError("there is one for each power of two")
        return self._limited(lambda: self._spans(axis))

    def _spans(self, axis: str) -> tuple[Span, ...]:
        import islpy

        names = [p.name for p in self.reading.positions]
        at = self.reading.positions[names.index(axis)].place
        pairs = self.points.where(self.reading.mask) & self._within("q" if axis == "k" else "k")
        pairs &= self.points.where(make("ge", at, Const(0)))
        for number in reversed(range(len(names))):
            if names[number] != axis:
                pairs = pairs.project_out(islpy.dim_type.set, number, 1)
        found = pairs.compute_divs().coalesce().gist_params(self.given)
        return spans(found, self.given, self.boxes.universe.parameters(), axis)

    def small(self) -> Expr:
        """Whether all run-time numbers are within what formulas can bear; lengths are."""
        found: Expr = Const(True)
        for atom in self.boxes.universe.atoms:
            if kind_of(atom) == "int" and not isinstance(atom, Size | Index):
                found = make("and", found, make("lt", atom, Const(LARGEST)))
                found = make("and", found, make("gt", atom, Const(-LARGEST)))
        return found

    def _limited(self, work: Callable[[], T]) -> T:
        """Let isl work on one question; a refusal when that takes too many operations."""
        import islpy

        context = self.boxes.universe.context
        context.reset_operations()
        context.set_max_operations(_MOST_OPERATIONS)
        try:
            return work()
        except islpy.Error as error:
            # Whatever the library cannot do leaves the conditions of interval analysis, and says so.
            stopped = "operations" in str(error)
            raise RefusalError(_TOO_MANY if stopped else f"isl gives up: {error}") from error
        finally:
            context.set_max_operations(0)


def _given(boxes: Sets) -> islpy.Set:
    """What holds for the corners of every box and for the lengths."""
    found = boxes.everything
    atoms = boxes.universe.atoms
    for place in boxes.universe.positions:
        for x, y in (
            (Const(0), place.lo),
            (place.lo, place.hi),
            (place.hi, Const(place.limit - 1)),
        ):
            found = found & boxes.where(make("le", x, y))
        length = {"k": Size("N"), "h": Size("H")}.get(place.name)
        if length in atoms:
            found = found & boxes.where(make("lt", place.hi, length))
    for atom in atoms:
        if isinstance(atom, Size):
            found = found & boxes.where(make("le", Const(1), atom))
            found = found & boxes.where(make("le", atom, Const(LIMIT)))
        if kind_of(atom) == "bool":
            number = boxes.places[atom]
            found = found & number.ge_set(boxes.number(0)) & number.le_set(boxes.number(1))
    return found


def _length(expr: Expr) -> int:
    """How many operations a formula has when it is written out."""
    found: dict[Expr, int] = {}
    for node in walk(expr):
        found[node] = 1 + sum(found[c] for c in children(node))
    return found[expr]
