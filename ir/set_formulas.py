"""Turns sets of integer points back into scalar formulas: constraints, unions of them, bounds of one position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING

from attncompiler.ir.expr import Call, Const, Expr, kind_of
from attncompiler.ir.integer_sets import RefusalError
from attncompiler.ir.linear import Linear, linear, to_expression
from attncompiler.ir.passes.canonicalize import make

if TYPE_CHECKING:
    import islpy

# Formulas stay far from 64 bits while run-time numbers keep below LARGEST.
LARGEST, _LARGEST_FACTOR = 1 << 40, 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """``sum of coefficient * expression + constant``, compared with 0 (``equal``) or not negative.

    ``axis`` is the coefficient of the position of a set along one axis; ``hidden`` says that a quotient reads it.
    """

    terms: dict[Expr, int]
    constant: int
    equal: bool = False
    axis: int = 0
    hidden: bool = False


def conditions(rows: Iterable[Row]) -> Expr:
    """All rows at once."""
    true: Expr = Const(True)
    return reduce(partial(make, "and"), dict.fromkeys(map(condition, rows)), true)


def condition(row: Row) -> Expr:
    """One row, with no term on the side where it would be negative."""
    match tuple(row.terms.items()):
        case ((Call("to_int", (switch,)), factor),) if kind_of(switch) == "bool":
            off, on = (_holds(row, row.constant + factor * x) for x in (0, 1))
            return Const(on) if on == off else switch if on else make("not", switch)
    left = {e: c for e, c in row.terms.items() if c > 0}
    right = {e: -c for e, c in row.terms.items() if c < 0}
    constant, op = row.constant, "eq" if row.equal else "ge"
    if not row.equal and constant == -1:
        constant, op = 0, "gt"
    if not left and not row.equal:  # 5 - x >= 0 reads x <= 5
        return make("le", to_expression(Linear(right)), Const(row.constant))
    sides = Linear(left, max(constant, 0)), Linear(right, max(-constant, 0))
    return make(op, *map(to_expression, sides))


def _holds(row: Row, value: int) -> bool:
    return value == 0 if row.equal else value >= 0


def formula(of: islpy.Set, names: Sequence[Expr]) -> Expr:
    """The condition on its parameters that a set stands for; ``names`` are the parameters.

    A set with a dimension stands for the parameters for which some power of two lies in it.
    """
    false: Expr = Const(False)
    pieces = (_piece(rows(b, names)) for b in of.get_basic_sets())
    return reduce(partial(make, "or"), pieces, false)


def _piece(found: Sequence[Row]) -> Expr:
    if any(r.hidden or (r.equal and abs(r.axis) > 1) for r in found):
        raise RefusalError("its powers of two are rounded")
    fixed = conditions(r for r in found if not r.axis)
    above = end(found)
    if above is None:
        return fixed
    last = to_expression(linear(above).plus(Linear({}, -1)))
    fixed = make("and", fixed, make("ge", last, Const(1)))
    below = least(found)
    if below is None or below is Const(1):
        return fixed
    length = make("sub", make("bit_length", make("max", last, Const(1))), Const(1))
    return make("and", fixed, make("ge", make("shl", Const(1), length), below))


def least(found: Iterable[Row]) -> Expr | None:
    """The smallest place on the axis that meets all rows; None when nothing bounds it."""
    ends = [_least(r) for r in found if r.axis > 0 or (r.equal and r.axis)]
    return reduce(partial(make, "max"), ends) if ends else None


def end(found: Iterable[Row]) -> Expr | None:
    """One more than the largest place on the axis that meets all rows; None when nothing bounds it."""
    ends = [_end(r) for r in found if r.axis < 0 or (r.equal and r.axis)]
    return reduce(partial(make, "min"), ends) if ends else None


def _least(row: Row) -> Expr:
    """The smallest place with ``axis * place + rest >= 0`` (or ``== 0``), axis not 0."""
    if row.axis < 0:
        return to_expression(Linear(dict(row.terms), row.constant))
    rest = Linear({}).plus(Linear(dict(row.terms), row.constant), -1)
    return _divided(rest.plus(Linear({}, row.axis - 1)), row.axis)


def _end(row: Row) -> Expr:
    """One more than the largest such place."""
    if row.axis > 0:
        return to_expression(Linear({}, 1).plus(Linear(dict(row.terms), row.constant), -1))
    return _divided(Linear(dict(row.terms), row.constant - row.axis), -row.axis)


def _divided(form: Linear, size: int) -> Expr:
    total = to_expression(form)
    return total if size == 1 else make("floordiv", total, Const(size))


def rows(of: islpy.BasicSet, names: Sequence[Expr]) -> list[Row]:
    """The constraints of a convex set of at most one position, without those that define quotients."""
    return [_row(c, names) for c in of.get_constraints() if not c.is_div_constraint()]


def _row(of: islpy.Constraint, names: Sequence[Expr]) -> Row:
    import islpy

    kinds = islpy.dim_type
    form = Linear(_parameters(of, names), _integer(of.get_constant_val(), LARGEST))
    local = of.get_local_space()
    axis = _integer(of.get_coefficient_val(kinds.set, 0)) if of.dim(kinds.set) else 0
    hidden = False
    for number in range(of.dim(kinds.div)):
        factor = _integer(of.get_coefficient_val(kinds.div, number))
        if factor:
            inside = local.get_div(number)
            if _reads_axis(inside):
                hidden = True
            else:
                form = form.plus(_quotient(inside, names), factor)
    return Row(form.terms, form.constant, bool(of.is_equality()), axis, hidden)


def _reads_axis(of: islpy.Aff) -> bool:
    import islpy

    count = of.dim(islpy.dim_type.in_)
    return bool(count and of.involves_dims(islpy.dim_type.in_, 0, count))


def _parameters(of: islpy.Constraint | islpy.Aff, names: Sequence[Expr]) -> dict[Expr, int]:
    import islpy

    terms: dict[Expr, int] = {}
    for number, name in enumerate(names):
        factor = _integer(of.get_coefficient_val(islpy.dim_type.param, number))
        if factor:
            terms[name if kind_of(name) == "int" else make("to_int", name)] = factor
    return terms


def _quotient(of: islpy.Aff, names: Sequence[Expr]) -> Linear:
    """A sum of parameters and other quotients over a number, rounded down.

    Whole multiples leave the quotient, and it is written with a positive first term: ``(5 * q + 5) // 6`` becomes
    ``q - q // 6``.
    """
    import islpy

    size = _integer(of.get_denominator_val())
    scaled = of.scale_val(islpy.Val.int_from_si(of.get_ctx(), size))
    form = Linear(_parameters(scaled, names), _integer(scaled.get_constant_val(), LARGEST))
    for number in range(scaled.dim(islpy.dim_type.div)):
        factor = _integer(scaled.get_coefficient_val(islpy.dim_type.div, number))
        if factor:
            form = form.plus(_quotient(scaled.get_div(number), names), factor)
    if size == 1:
        return form
    whole = Linear(
        {e: n for e, c in form.terms.items() if (n := (c + (size - 1) // 2) // size)},
        form.constant // size,
    )
    rest = form.plus(whole, -size)
    if not rest.terms:
        return whole
    sign = 1 if next(iter(rest.terms.values())) > 0 else -1
    if sign < 0:
        rest = Linear({}, size - 1).plus(rest, -1)
        whole, rest = (
            whole.plus(Linear({}, rest.constant // size), -1),
            Linear(rest.terms, rest.constant % size),
        )
    return whole.plus(Linear({make("floordiv", to_expression(rest), Const(size)): sign}))


def choice(of: islpy.PwAff, names: Sequence[Expr]) -> Expr:
    """A value given piece by piece; what it is outside of all pieces does not matter."""
    found: Expr | None = None
    for where, value in of.get_pieces():
        this = to_expression(_quotient(value, names))
        found = this if found is None else make("where", formula(where, names), this, found)
    if found is None:
        raise RefusalError("a range of positions is always empty")
    return found


def _integer(value: islpy.Val, limit: int = _LARGEST_FACTOR) -> int:
    """A number of a constraint; formulas with large ones could leave the range of integers."""
    found = value.to_python()
    if not isinstance(found, int) or abs(found) > limit:
        raise RefusalError("the numbers in its conditions are too large")
    return found
