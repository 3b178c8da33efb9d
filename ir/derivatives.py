"""Turns formulas and the gradients of their values into the gradients of everything they read (reverse mode).

Where a function has no derivative at a point the usual choice of a subgradient is made: abs and sign at 0 give 0,
``max(x, c)`` with a constant or parameter passes the gradient only where x > c (so relu has derivative 0 at 0), two
variables share it at a tie. floor, ceil, trunc, round, sign, ``//``, comparisons and conversions to integers have
derivative 0. The gradient of a branch that ``where`` did not choose is exactly 0, also where that branch is infinite
or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Load,
    Score,
    Stat,
    Value,
    kind_of,
    walk,
)
from attncompiler.ir.passes.canonicalize import make

ZERO, ONE = Const(0.0), Const(1.0)
_LN_2 = Const(math.log(2.0))


def adjoints(
    seeds: Mapping[Expr, Expr], constants: AbstractSet[Expr] = frozenset()
) -> dict[Expr, Expr]:
    """The gradient of every float node that the roots reach, given the gradients (``seeds``) of the roots.

    Every node is visited once, after all its users, so shared subexpressions are counted once. Nodes that get no
    gradient are absent; those in ``constants`` pass none on.
    """
    found: dict[Expr, Expr] = {}
    for root, seed in seeds.items():
        _add(found, root, seed)
    for node in reversed(list(walk(*seeds))):
        upstream = found.get(node)
        if upstream is not None and isinstance(node, Call) and node not in constants:
            for operand, gradient in _operand_gradients(node, upstream):
                if kind_of(operand) == "float" and not isinstance(operand, Const):
                    _add(found, operand, gradient)
    return found


def times(gradient: Expr, factor: Expr) -> Expr:
    """``gradient * factor``, where a gradient that is 0 by a condition stays 0 whatever the factor is."""
    match gradient:
        case _ if gradient is ZERO or factor is ZERO:
            return ZERO
        case Const(1.0):
            return factor
        case Call("where", (c, x, y)) if x is ZERO or y is ZERO:
            return make("where", c, times(x, factor), times(y, factor))
        case _:
            return make("mul", gradient, factor)


def over(gradient: Expr, divisor: Expr) -> Expr:
    """``gradient / divisor``, with the same care for conditions as ``times``."""
    match gradient:
        case _ if gradient is ZERO:
            return ZERO
        case Call("where", (c, x, y)) if x is ZERO or y is ZERO:
            return make("where", c, over(x, divisor), over(y, divisor))
        case _:
            return make("div", gradient, divisor)


def negative(gradient: Expr) -> Expr:
    """``-gradient``, with the minus inside conditions."""
    match gradient:
        case Call("where", (c, x, y)) if x is ZERO or y is ZERO:
            return make("where", c, negative(x), negative(y))
        case _ if gradient is ZERO:
            return ZERO
        case _:
            return make("neg", gradient)


def _add(found: dict[Expr, Expr], node: Expr, gradient: Expr) -> None:
    if gradient is not ZERO:
        found[node] = make("add", found[node], gradient) if node in found else gradient


def chosen(condition: Expr, gradient: Expr, *, otherwise: bool = False) -> Expr:
    """The gradient where the condition holds (or where it does not), else exactly 0."""
    sides = (ZERO, gradient) if otherwise else (gradient, ZERO)
    return ZERO if gradient is ZERO else make("where", condition, *sides)


def _operand_gradients(node: Call, g: Expr) -> list[tuple[Expr, Expr]]:
    match node.op, node.args:
        case "add", (x, y):
            return [(x, g), (y, g)]
        case "sub", (x, y):
            return [(x, g), (y, negative(g))]
        case "neg", (x,):
            return [(x, negative(g))]
        case "mul", (x, y):
            return [(x, times(g, y)), (y, times(g, x))]
        case "div", (x, y):
            result = [(x, over(g, y))]
            if _varies(y):
                result.append((y, negative(over(times(g, node), y))))
            return result
        case "mod", (x, y) if kind_of(x) == "float":
            return [(x, g), (y, negative(times(g, make("floor", make("div", x, y)))))]
        case (("min" | "max"), (x, y)) if kind_of(x) == "float":
            return _extremum(node.op, x, y, g)
        case "pow", (x, y):
            return _power(node, x, y, g)
        case "where", (c, x, y):
            return [(x, chosen(c, g)), (y, chosen(c, g, otherwise=True))]
        case op, (x,) if op in _UNARY and kind_of(x) == "float":
            return [(x, _UNARY[op](g, x, node))]
        case _:
            return []  # derivative 0: see the module's text


def _varies(expr: Expr) -> bool:
    """Whether a gradient can flow into an expression: parameters, sizes and indices take none."""
    return any(
        isinstance(n, Dot | Score | Stat | Value) or (isinstance(n, Load) and n.kind == "float")
        for n in walk(expr)
    )


def _extremum(op: str, x: Expr, y: Expr, g: Expr) -> list[tuple[Expr, Expr]]:
    beats = "gt" if op == "max" else "lt"
    result = []
    for mine, other in ((x, y), (y, x)):
        if not _varies(mine):
            continue
        share = chosen(make(beats, mine, other), g)
        if _varies(other):
            half = chosen(make("eq", mine, other), times(g, Const(0.5)))
            share = make("where", make(beats, mine, other), g, half)
        result.append((mine, share))
    return result


def _power(node: Expr, x: Expr, y: Expr, g: Expr) -> list[tuple[Expr, Expr]]:
    result = []
    if _varies(x):
        lower = make("pow", x, make("sub", y, ONE))
        slope = times(times(g, y), lower)
        if not isinstance(y, Const):
            slope = chosen(make("eq", y, ZERO), slope, otherwise=True)
        result.append((x, slope))
    if _varies(y):
        flat = make("and", make("eq", x, ZERO), make("ge", y, ZERO))
        result.append((y, chosen(flat, times(times(g, node), make("log", x)), otherwise=True)))
    return result


_UNARY: dict[str, Callable[[Expr, Expr, Expr], Expr]] = {
    "abs": lambda g, x, f: times(g, make("sign", x)),
    "exp": lambda g, x, f: times(g, f),
    "exp2": lambda g, x, f: times(times(g, f), _LN_2),
    "expm1": lambda g, x, f: times(g, make("add", f, ONE)),
    "log": lambda g, x, f: over(g, x),
    "log2": lambda g, x, f: over(g, make("mul", x, _LN_2)),
    "log1p": lambda g, x, f: over(g, make("add", x, ONE)),
    "sqrt": lambda g, x, f: over(times(g, Const(0.5)), f),
    "rsqrt": lambda g, x, f: over(times(times(g, f), Const(-0.5)), x),
    "tanh": lambda g, x, f: times(g, make("sub", ONE, make("mul", f, f))),
    "sigmoid": lambda g, x, f: times(times(g, f), make("sub", ONE, f)),
    "erf": lambda g, x, f: times(
        times(g, make("exp", make("neg", make("mul", x, x)))), Const(2 / math.sqrt(math.pi))
    ),
    "sin": lambda g, x, f: times(g, make("cos", x)),
    "cos": lambda g, x, f: negative(times(g, make("sin", x))),
}
DIFFERENTIABLE = frozenset(_UNARY) | {
    *("add", "sub", "neg", "mul", "div", "mod", "min", "max", "pow", "where")
}
