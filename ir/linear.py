"""Turns integer expressions into sums of integer multiples of atoms plus a constant.

``(q + 1) - 2 * (k - q)`` becomes ``3 * q - 2 * k + 1``. Subterms that cancel disappear, and ``x -
c * (x // c)`` becomes ``x % c``. Atoms are the expressions that are not sums: indices,
parameters, loads, remainders, products of two unknowns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attncompiler.ir.expr import Call, Const, Expr, Index, axes_of
from attncompiler.ir.passes.canonicalize import make

TILE_AXES = frozenset("qkh")


@dataclass(frozen=True, slots=True)
class Linear:
    """``sum of coefficient * atom, plus constant``; no coefficient is 0."""

    terms: dict[Expr, int]
    constant: int = 0

    def plus(self, other: Linear, factor: int = 1) -> Linear:
        """``self + factor * other``."""
        terms = dict(self.terms)
        for atom, coefficient in other.terms.items():
            terms[atom] = terms.get(atom, 0) + factor * coefficient
        return Linear(
            {a: c for a, c in terms.items() if c}, self.constant + factor * other.constant
        )

    def varying(self) -> dict[Expr, int]:
        """The terms that are not the same for all pairs of a tile."""
        return {a: c for a, c in self.terms.items() if not is_uniform(a)}

    def uniform(self) -> Linear:
        """The rest: terms that are the same for all pairs of a tile, and the constant."""
        return Linear({a: c for a, c in self.terms.items() if is_uniform(a)}, self.constant)


def is_uniform(expr: Expr) -> bool:
    """Whether a value is the same for all (q, k, h) of a tile."""
    return not axes_of(expr) & TILE_AXES


def is_coarse(index: Expr) -> bool:
    """Whether tiles often lie within one value of an index of a tensor."""
    match index:
        case Index("h"):
            return True
        case Call("floordiv", (_, size)):
            return is_uniform(size)
        case _:
            return is_uniform(index)


def linear(expr: Expr) -> Linear:
    """The linear form of an expression of kind int."""
    return _remainders(_linear(expr))


def _linear(expr: Expr) -> Linear:
    match expr:
        case Const(int() as value):
            return Linear({}, value)
        case Call("add", (x, y)):
            return _linear(x).plus(_linear(y))
        case Call("sub", (x, y)):
            return _linear(x).plus(_linear(y), -1)
        case Call("neg", (x,)):
            return Linear({}).plus(_linear(x), -1)
        case Call("mul", (x, Const(int() as c))) | Call("mul", (Const(int() as c), x)):
            return Linear({}).plus(_linear(x), c)
        case Call("shl", (x, Const(int() as c))) if 0 <= c < 63:
            return Linear({}).plus(_linear(x), 1 << c)
        case _:
            return Linear({expr: 1})


def _remainders(form: Linear) -> Linear:
    """Replace ``t * x - t * c * (x // c)`` by ``t * (x % c)``."""
    for atom, coefficient in form.terms.items():
        match atom:
            case Call("floordiv", (x, Const(int() as c))) if c != 0 and coefficient % c == 0:
                times, inner = -(coefficient // c), _linear(x)
                if inner.terms and all(
                    form.terms.get(a) == times * n for a, n in inner.terms.items()
                ):
                    rest = form.plus(inner, -times).plus(Linear({atom: coefficient}), -1)
                    return _remainders(rest.plus(Linear({make("mod", x, Const(c)): times})))
            case _:
                pass
    return form


def to_expression(form: Linear) -> Expr:
    """The expression of a linear form, positive terms first."""
    return total(form.terms.items(), form.constant)


def total(terms: Iterable[tuple[Expr, int]], constant: int = 0) -> Expr:
    """The sum of ``coefficient * expression`` and a constant, without needless operations."""
    found: Expr | None = None
    for expr, coefficient in sorted(terms, key=lambda term: term[1] < 0):
        size = make("mul", expr, Const(abs(coefficient)))
        if found is None:
            found = size if coefficient > 0 else make("neg", size)
        else:
            found = make("add" if coefficient > 0 else "sub", found, size)
    return Const(constant) if found is None else make("add", found, Const(constant))
