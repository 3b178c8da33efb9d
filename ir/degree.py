"""Turns a formula and one exponential in it into the power with which the formula follows that exponential.

When every exp(x) of a row is multiplied by one number t > 0, exp(x) * y has degree 1, a sum of such terms
degree 1, and their quotient degree 0: it does not change. None says that no such power exists, as for
exp(x) + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, TypeAlias

from attncompiler.ir.expr import Call, Const, Expr, Stat, children, walk

Degree: TypeAlias = "Fraction | Literal['any'] | None"

_ZERO = Fraction(0)


def degrees(
    roots: tuple[Expr, ...], exponential: Expr, stats: Mapping[str, Degree]
) -> dict[Expr, Degree]:
    """The degree of every node under the roots; ``stats`` gives those of the statistics they read.

    'any' is the degree of the constant 0, which is the same whatever it is multiplied by.
    """
    found: dict[Expr, Degree] = {exponential: Fraction(1)}
    for node in walk(*roots, known=found):
        match node:
            case Stat(name):
                found[node] = stats.get(name, _ZERO)
            case Const(float() as value) if value == 0:
                found[node] = "any"
            case Call(op, args):
                found[node] = _of_call(op, args, [found[a] for a in args])
            case _:
                plain = all(found[c] in (_ZERO, "any") for c in children(node))
                found[node] = _ZERO if plain else None
    return found


def _of_call(op: str, args: tuple[Expr, ...], of: list[Degree]) -> Degree:
    if None in of:
        return None
    match op, args, of:
        case (("neg" | "abs"), _, [d]):
            return d
        case "mul", _, [x, y]:
            return _combined(x, y, 1)
        case "div", _, [x, y]:
            return None if y == "any" else _combined(x, y, -1)
        case (("add" | "sub" | "min" | "max"), _, [x, y]):
            return _common(x, y)
        case (("eq" | "ne" | "lt" | "le" | "gt" | "ge"), _, [x, y]):
            return _ZERO if _common(x, y) is not None else None
        case "where", _, [c, x, y] if c in (_ZERO, "any"):
            return _common(x, y)
        case "sign", _, _:
            return _ZERO
        case (("sqrt" | "rsqrt"), _, [Fraction() as d]):
            return d / 2 if op == "sqrt" else -d / 2
        case "pow", (_, Const(float() as n)), [Fraction() as d, _] if n.is_integer():
            return d * int(n)
        case _:
            return _ZERO if all(d in (_ZERO, "any") for d in of) else None


def _combined(x: Degree, y: Degree, sign: int) -> Degree:
    return x + sign * y if isinstance(x, Fraction) and isinstance(y, Fraction) else "any"


def _common(x: Degree, y: Degree) -> Degree:
    if x == "any":
        return y
    return x if y in (x, "any") else None
