"""Turns an "and" of comparisons over a box into the condition that a pair may satisfy them all.

Each condition below is necessary; together they are sufficient when the varying parts are one
index, one difference of indices, or independent. ``k >= s and q - k < w`` over a box becomes ``s
<= k_hi and q_lo - k_hi < w``: an exact answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import product

from attncompiler.ir.expr import Call, Const, Expr, Index, Load, Local, Param, Size, kind_of
from attncompiler.ir.intervals import Box, Form, Range, bounds, corner_bounds
from attncompiler.ir.linear import Linear, is_coarse, is_uniform, linear, to_expression, total
from attncompiler.ir.passes.canonicalize import make

Literal = tuple[Expr, bool]
Conjunction = tuple[Literal, ...]

_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
_MOST_VARYING = 3
_ROOM = 1 << 62
_LOWER, _UPPER, _STRICT = frozenset(("ge", "gt", "eq")), frozenset(("le", "lt", "eq")), ("gt", "lt")


@dataclass(frozen=True, slots=True)
class _Constraint:
    """``form op limit``: a sum of varying atoms compared with a uniform value."""

    terms: Mapping[Expr, int]
    op: str
    limit: Expr

    def mirrored(self) -> _Constraint:
        terms = {a: -c for a, c in self.terms.items()}
        limit = to_expression(Linear({}).plus(linear(self.limit), -1))
        return _Constraint(terms, _MIRRORED[self.op], limit)


def conjunction(literals: Conjunction, box: Box) -> Expr:
    """Whether some pair of the box may give every literal its truth value."""
    conditions: list[Expr] = []
    groups: dict[Form, list[_Constraint]] = {}
    others: Conjunction = ()
    for expr, truth in literals:
        if is_uniform(expr):
            conditions.append(expr if truth else make("not", expr))
            continue
        match expr:
            case Call(op, (x, y)) if truth and op in _MIRRORED and kind_of(x) == "int":
                form = linear(x).plus(linear(y), -1)
                limit = to_expression(Linear({}).plus(form.uniform(), -1))
                if form.varying():
                    _file(_Constraint(form.varying(), op, limit), groups)
                else:
                    conditions.append(make(op, Const(0), limit))
            case _:
                others += ((expr, truth),)
    singles = {f: cs for f, cs in groups.items() if _index_of(cs[0]) is not None}
    compound = {f: cs for f, cs in groups.items() if f not in singles}
    for cs in singles.values():
        conditions += _meet(cs, corner_bounds(cs[0].terms, box))
    inner = replace(
        box,
        axes=_shrunk(singles, box),
        forms={**box.forms, **{f: _limits(cs) for f, cs in compound.items()}},
        memo={},
    )
    for cs in compound.values():
        tested = [(c.op, _power_test(c)) for c in cs]
        if any(operand is None for _, operand in tested):
            conditions += _meet(cs, corner_bounds(cs[0].terms, inner))
        conditions += [found for c in cs for found in _congruence(c, inner)]
        conditions += [found for c in cs for found in _table(c, inner)]
        for op, operand in tested:
            conditions += [] if operand is None else _power_of_two(op, bounds(operand, inner))
    for expr, truth in others:
        element = _some_element(expr, inner, (lambda e: e) if truth else partial(make, "not"))
        conditions += element or [_float_comparison(expr, truth, inner)]
    true: Expr = Const(True)
    known = reduce(partial(make, "and"), dict.fromkeys(conditions), true)
    # Where a limit could overflow although the user's formula does not, nothing is known.
    huge = [_may_overflow(c.limit) for cs in groups.values() for c in cs]
    return reduce(partial(make, "or"), dict.fromkeys(huge), known)


def _may_overflow(limit: Expr) -> Expr:
    """Whether run-time numbers are so large that a limit made of several may leave 64 bits."""
    form = linear(limit)
    atoms = {a: c for a, c in form.terms.items() if not _is_bounded(a)}
    huge: Expr = Const(False)
    if not atoms or (len(form.terms) == 1 and not form.constant and set(atoms.values()) <= {1, -1}):
        return huge
    most = _ROOM // (sum(map(abs, form.terms.values())) + 1)
    for atom in atoms:
        huge = make("or", huge, make("ge", atom, Const(most)))
        huge = make("or", huge, make("le", atom, Const(-most)))
    return huge


def _is_bounded(atom: Expr) -> bool:
    """Whether a number is a length, a position or a count of heads."""
    return isinstance(atom, (Size, Index)) or atom is Param("q_start", "int")


def _file(constraint: _Constraint, groups: dict[Form, list[_Constraint]]) -> None:
    """Put comparisons of one form together, whichever way round they were written."""
    mirrored = constraint.mirrored()
    known = frozenset(constraint.terms.items()) in groups
    negative = constraint.terms.get(Index("q"), next(iter(constraint.terms.values()))) < 0
    if frozenset(mirrored.terms.items()) in groups or (negative and not known):
        constraint = mirrored
    groups.setdefault(frozenset(constraint.terms.items()), []).append(constraint)


def _index_of(constraint: _Constraint) -> str | None:
    """The axis, when the form is one index alone."""
    match tuple(constraint.terms.items()):
        case ((Index(axis) | Local(axis), 1),):
            return axis
        case _:
            return None


def _shrunk(singles: Mapping[Form, list[_Constraint]], box: Box) -> dict[str, Range]:
    axes = dict(box.axes)
    for cs in singles.values():
        axis = _index_of(cs[0])
        if axis in axes:
            axes[axis] = axes[axis].narrowed(_limits(cs))
    return axes


def _limits(constraints: list[_Constraint]) -> Range:
    """The values that the comparisons of one form leave; an overflowing bound only widens them."""
    found = Range()
    for c in constraints:
        lo = _step(c.limit, c.op == "gt") if c.op in _LOWER else None
        hi = _step(c.limit, -(c.op == "lt")) if c.op in _UPPER else None
        found = found.narrowed(Range(lo, hi))
    return found


def _step(limit: Expr, by: int) -> Expr:
    return to_expression(linear(limit).plus(Linear({}, by))) if by else limit


def _meet(constraints: list[_Constraint], of: Range) -> list[Expr]:
    """What values of one form within a range must satisfy to meet all comparisons."""
    found: list[Expr] = []
    for c in constraints:
        if c.op in _LOWER and of.hi is not None:
            found.append(_compare("gt" if c.op == "gt" else "ge", of.hi, c.limit))
        if c.op in _UPPER and of.lo is not None:
            found.append(_compare("lt" if c.op == "lt" else "le", of.lo, c.limit))
        if c.op == "ne" and of.lo is not None and of.hi is not None:
            found.append(make("or", make("ne", of.lo, c.limit), make("ne", of.hi, c.limit)))
    for low in (c for c in constraints if c.op in _LOWER):
        for high in (c for c in constraints if c.op in _UPPER and c is not low):
            strict = (low.op in _STRICT) + (high.op in _STRICT)
            least = _step(low.limit, 1) if strict == 2 else low.limit
            found.append(make("lt" if strict else "le", least, high.limit))
    return found


def _compare(op: str, bound: Expr, limit: Expr) -> Expr:
    """``x - y op 0`` as ``x op y``."""
    match bound:
        case Call("sub", (x, y)) if limit is Const(0):
            return make(op, x, y)
        case _:
            return make(op, bound, limit)


def _congruence(c: _Constraint, box: Box) -> list[Expr]:
    """``x % m == r`` and ``x % m == y % m``, about which ranges of remainders say too little."""
    match c.op, tuple(c.terms.items()):
        case "eq", ((Call("mod", (x, m)), 1),) if is_uniform(m):
            return _congruent(x, m, c.limit, box)
        case "eq", ((Call("mod", (x, m)), 1), (Call("mod", (y, n)), -1)) if m is n and is_uniform(
            m
        ):
            return _congruent(make("sub", x, y), m, c.limit, box)
        case _:
            return []


def _table(c: _Constraint, box: Box) -> list[Expr]:
    """Elements of a table that holds one number for a block of positions, such as ``states[q // 128, k // 128]``."""
    match tuple(c.terms.items()):
        case ((atom, factor),):
            return _some_element(atom, box, lambda e: make(c.op, total([(e, factor)]), c.limit))
        case _:
            return []


def _some_element(load: Expr, box: Box, test: Callable[[Expr], Expr]) -> list[Expr]:
    """Whether an element that pairs of the box read may pass a test; nothing when the load is of another form.

    A box that touches at most two blocks along each axis reads the elements at its corners. Of a larger one nothing
    is known.
    """
    if not isinstance(load, Load) or not all(map(is_coarse, load.indices)):
        return []
    places = [bounds(index, box).both() for index in load.indices]
    known = [both for both in places if both is not None]
    if len(known) < len(places) or sum(lo is not hi for lo, hi in known) > _MOST_VARYING:
        return []
    far: Expr = Const(False)
    for lo, hi in known:
        far = make("or", far, make("gt", make("sub", hi, lo), Const(1)))
    corners = product(*(dict.fromkeys(both) for both in known))
    passed = (test(Load(load.tensor, corner, load.kind)) for corner in corners)
    return [reduce(partial(make, "or"), passed, far)]


def _power_test(c: _Constraint) -> Expr | None:
    """The x of ``x & (x - 1)`` compared with 0 for equality."""
    match tuple(c.terms.items()):
        case ((Call("bitand", (x, y)), 1),) if c.op in ("eq", "ne") and c.limit is Const(0):
            return x if linear(x).plus(linear(y), -1) == Linear({}, 1) else None
        case _:
            return None


def _congruent(x: Expr, modulus: Expr, residue: Expr, box: Box) -> list[Expr]:
    """Some integer of x's range leaves the residue: a multiple of m is in lo - r .. hi - r."""
    both = bounds(x, box).both()
    if both is None:
        return []
    size = make("abs", modulus)
    rest = linear(residue)
    before, last = (
        make("floordiv", to_expression(linear(e).plus(rest, -1).plus(Linear({}, by))), size)
        for e, by in zip(both, (-1, 0), strict=True)
    )
    # Dividing by 0 leaves 0 of every number.
    return [make("or", make("gt", last, before), make("eq", modulus, Const(0)))]


def _power_of_two(op: str, of: Range) -> list[Expr]:
    """``x & (x - 1)`` is 0 exactly for 0 and the powers of two."""
    if of.lo is None or of.hi is None:
        return []
    lo, hi, zero, one = of.lo, of.hi, Const(0), Const(1)
    if op == "ne":
        only = make("eq", make("bitand", lo, make("sub", lo, one)), zero)
        small = make("and", make("ge", lo, zero), make("le", hi, Const(2)))
        return [make("not", make("or", small, make("and", make("eq", lo, hi), only)))]
    length = make("bit_length", make("max", hi, one))
    largest = make("shl", one, make("sub", length, one))
    some = make("or", make("le", lo, zero), make("ge", largest, lo))
    return [make("ge", hi, zero), some]


def _float_comparison(expr: Expr, truth: bool, box: Box) -> Expr:
    """Integers converted to float keep their order, hence their bounds; NaN satisfies nothing."""
    match expr:
        case Call(op, (x, y)) if op in _MIRRORED and kind_of(x) == "float":
            a, b = _float_bounds(x, box), _float_bounds(y, box)
        case _:
            return Const(True)
    if a is None or b is None:
        return Const(True)
    (x_lo, x_hi), (y_lo, y_hi) = a, b
    meet = make("and", make("le", x_lo, y_hi), make("le", y_lo, x_hi))
    differ = make("not", make("and", make("eq", x_lo, y_hi), make("eq", x_hi, y_lo)))
    match op:
        case "eq" | "ne":
            return meet if truth == (op == "eq") else differ
        case "lt" | "le":
            return make(op, x_lo, y_hi) if truth else make("not", make(op, x_hi, y_lo))
        case _:
            return make(op, x_hi, y_lo) if truth else make("not", make(op, x_lo, y_hi))


def _float_bounds(expr: Expr, box: Box) -> tuple[Expr, Expr] | None:
    if is_uniform(expr):
        return expr, expr
    match expr:
        case Call("to_float", (x,)) if kind_of(x) == "int":
            both = bounds(x, box).both()
            return both and (make("to_float", both[0]), make("to_float", both[1]))
        case _:
            return None
