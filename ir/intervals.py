"""Turns an integer expression over a box of indices into the bounds of its values there.

Bounds are themselves expressions, over the corners of the box and what is uniform in it, so that
a kernel can compute them. ``None`` stands for no bound. Bounds always hold, short of 64-bit
overflow in the user's own formula; they are tight for sums of independent indices and for
monotone functions of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from attncompiler.ir.expr import Call, Const, Expr, Index, Local, kind_of
from attncompiler.ir.linear import Linear, is_uniform, linear, to_expression, total
from attncompiler.ir.passes.canonicalize import make

Form = frozenset[tuple[Expr, int]]
Decide = Callable[[Expr, bool, "Box"], Expr]


@dataclass(frozen=True, slots=True)
class Range:
    """All values lie in ``lo .. hi``, both included; None: unbounded on that side."""

    lo: Expr | None = None
    hi: Expr | None = None

    def both(self) -> tuple[Expr, Expr] | None:
        """The two bounds where both exist."""
        return None if self.lo is None or self.hi is None else (self.lo, self.hi)

    def narrowed(self, other: Range) -> Range:
        """The intersection."""
        return Range(tighter("max", self.lo, other.lo), tighter("min", self.hi, other.hi))


@dataclass(frozen=True, slots=True)
class Box:
    """Ranges of the indices, of named values, and of linear forms about which more is known than their indices tell.

    ``decide(condition, truth, box)`` says whether a condition may have the given truth in the box
    (``ir/tiles.py``); the ranges of ``where`` ask it.
    """

    axes: Mapping[str, Range]
    decide: Decide
    values: Mapping[Expr, Range] = field(default_factory=dict)
    forms: Mapping[Form, Range] = field(default_factory=dict)
    memo: dict[Expr, Range] = field(default_factory=dict)


def tighter(op: str, x: Expr | None, y: Expr | None) -> Expr | None:
    """``op`` (min or max) of two bounds of which either may be missing: the one that exists."""
    if x is None or y is None:
        return y if x is None else x
    return make(op, x, y)


def looser(op: str, x: Expr | None, y: Expr | None) -> Expr | None:
    """``op`` of two bounds; missing when either is."""
    return None if x is None or y is None else make(op, x, y)


def bounds(expr: Expr, box: Box) -> Range:
    """The range of an expression of kind int over the box."""
    found = box.memo.get(expr)
    if found is None:
        form = linear(expr)
        varying, rest = form.varying(), form.uniform()
        found = shifted(bounds_of_form(varying, box), rest) if varying else _exact(form)
        box.memo[expr] = found
    return found


def _exact(form: Linear) -> Range:
    value = to_expression(form)
    return Range(value, value)


def shifted(of: Range, rest: Linear) -> Range:
    """The range moved by a uniform amount."""

    def move(bound: Expr | None) -> Expr | None:
        return None if bound is None else to_expression(linear(bound).plus(rest))

    return Range(move(of.lo), move(of.hi))


def bounds_of_form(terms: Mapping[Expr, int], box: Box) -> Range:
    """The range of a sum of multiples of varying atoms, with what the box knows about the form."""
    found = corner_bounds(terms, box)
    known = box.forms.get(frozenset(terms.items()))
    if known is not None:
        return found.narrowed(known)
    known = box.forms.get(frozenset((a, -c) for a, c in terms.items()))
    if known is not None:
        lo, hi = (None if b is None else make("neg", b) for b in (known.hi, known.lo))
        return found.narrowed(Range(lo, hi))
    return found


def corner_bounds(terms: Mapping[Expr, int], box: Box) -> Range:
    """The range of a sum of multiples of varying atoms, from the ranges of the atoms alone."""
    low: list[tuple[Expr, int]] | None = []
    high: list[tuple[Expr, int]] | None = []
    for atom, c in terms.items():
        of = _atom(atom, box)
        lo, hi = (of.lo, of.hi) if c > 0 else (of.hi, of.lo)
        low = None if low is None or lo is None else [*low, (lo, c)]
        high = None if high is None or hi is None else [*high, (hi, c)]
    return Range(None if low is None else total(low), None if high is None else total(high))


def _atom(expr: Expr, box: Box) -> Range:
    if is_uniform(expr):
        return Range(expr, expr)
    match expr:
        case Local() if expr in box.values:
            return box.values[expr]
        case Index(axis) | Local(axis):
            return box.axes.get(axis, Range())
        case Call("min" | "max" as op, (x, y)):
            a, b = bounds(x, box), bounds(y, box)
            lo, hi = (looser, tighter) if op == "min" else (tighter, looser)
            return Range(lo(op, a.lo, b.lo), hi(op, a.hi, b.hi))
        case Call("where", (c, x, y)):
            return _choice(c, bounds(x, box), bounds(y, box), box)
        case Call("to_int", (x,)) if kind_of(x) == "bool":
            certain = make("not", box.decide(x, False, box))
            return Range(make("to_int", certain), make("to_int", box.decide(x, True, box)))
        case Call("floordiv", (x, Const(int() as c))) if c > 0:
            return _each(bounds(x, box), lambda e: make("floordiv", e, Const(c)))
        case Call("sign", (x,)):
            one = Range(Const(-1), Const(1))
            return one.narrowed(_each(bounds(x, box), lambda e: make("sign", e)))
        case Call(op, (x, y)):
            return _binary(op, x, y, box)
        case Call("abs", (x,)):
            return _absolute(bounds(x, box))
        case Call("bit_length", (x,)):
            return _each(_absolute(bounds(x, box)), lambda e: make("bit_length", e))
        case _:
            return Range()


def _each(of: Range, f: Callable[[Expr], Expr]) -> Range:
    """The range of an increasing function."""
    return Range(None if of.lo is None else f(of.lo), None if of.hi is None else f(of.hi))


def _hull(*values: Expr) -> Range:
    lo = hi = values[0]
    for v in values[1:]:
        lo, hi = make("min", lo, v), make("max", hi, v)
    return Range(lo, hi)


def _choice(c: Expr, a: Range, b: Range, box: Box) -> Range:
    only_first = make("not", box.decide(c, False, box))
    only_second = make("not", box.decide(c, True, box))

    def pick(op: str, x: Expr | None, y: Expr | None) -> Expr | None:
        if x is None or y is None:
            return None
        return make("where", only_first, x, make("where", only_second, y, make(op, x, y)))

    return Range(pick("min", a.lo, b.lo), pick("max", a.hi, b.hi))


def _absolute(of: Range) -> Range:
    both = of.both()
    if both is None:
        return Range(Const(0))
    lo, hi = both
    minus_hi, minus_lo = to_expression(linear(make("neg", hi))), make("neg", lo)
    return Range(
        make("max", make("max", lo, minus_hi), Const(0)),
        make("max", hi, to_expression(linear(minus_lo))),
    )


def _binary(op: str, x: Expr, y: Expr, box: Box) -> Range:
    first, second = bounds(x, box).both(), bounds(y, box).both()
    if op == "mod":
        return _remainder(first, y) if is_uniform(y) else _residues(second)
    if first is None or second is None:
        return Range()
    (a, b), (c, d) = first, second
    match op:
        case "floordiv" | "shl" | "shr" if is_uniform(y):
            return _hull(make(op, a, y), make(op, b, y))
        case "mul" if x is y:
            return _each(_absolute(Range(a, b)), lambda e: make("mul", e, e))
        case "mul" if is_uniform(y):
            return _hull(make(op, a, y), make(op, b, y))
        case "mul" if is_uniform(x):
            return _hull(make(op, x, c), make(op, x, d))
        case "mul" | "shl" | "shr":
            return _hull(*(make(op, p, r) for p in (a, b) for r in (c, d)))
        case "bitand" | "bitor" | "bitxor":
            return _bitwise(op, (a, b), (c, d))
        case _:
            return Range()


def _remainder(of: tuple[Expr, Expr] | None, y: Expr) -> Range:
    """``x % y``: increasing while ``x // y`` stays the same, else any residue of y."""
    least = make("min", make("add", y, Const(1)), Const(0))
    largest = make("max", make("sub", y, Const(1)), Const(0))
    if of is None:
        return Range(least, largest)
    lo, hi = of
    same = make("eq", make("floordiv", lo, y), make("floordiv", hi, y))
    return Range(
        make("where", same, make("mod", lo, y), least),
        make("where", same, make("mod", hi, y), largest),
    )


def _residues(of: tuple[Expr, Expr] | None) -> Range:
    """What division by any number of a range may leave."""
    if of is None:
        return Range()
    least = make("min", make("add", of[0], Const(1)), Const(0))
    return Range(least, make("max", make("sub", of[1], Const(1)), Const(0)))


def _bitwise(op: str, x: tuple[Expr, Expr], y: tuple[Expr, Expr]) -> Range:
    """Exact on single values; else two's complement numbers of the length that both fit in."""
    (a, b), (c, d) = x, y
    zero, one = Const(0), Const(1)
    single = make("and", make("eq", a, b), make("eq", c, d))
    positive = make("and", make("ge", a, zero), make("ge", c, zero))
    length = make("bit_length", zero)
    for end in (a, b, c, d):
        length = make("max", length, make("bit_length", end))
    size = make("shl", one, length)
    highest = make("min", b, d) if op == "bitand" else make("sub", size, one)
    lo = make("where", positive, zero, make("neg", size))
    hi = make("where", positive, highest, make("sub", size, one))
    exact = make(op, a, c)
    return Range(make("where", single, exact, lo), make("where", single, exact, hi))
