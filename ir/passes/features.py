"""Turns a formula of one value feature d into parts ``factor * body`` whose factors do not vary with d.

Example: ``-(out_grad * bias[h, d] * exp(sink[h] - m))`` becomes the body ``out_grad * bias[h, d]`` with the factor
``-exp(sink[h] - m)``, so that sums over d of the same body are one sum.
"""

from __future__ import annotations

from attncompiler.ir.derivatives import ONE, ZERO, chosen, negative, over, times
from attncompiler.ir.expr import Call, Expr, axes_of
from attncompiler.ir.passes.canonicalize import make

Parts = dict[Expr, Expr]


def parts_along_d(expr: Expr) -> list[tuple[Expr, Expr]]:
    """The (body, factor) pairs of a formula, one a distinct body."""
    return [(body, factor) for body, factor in _parts(expr).items() if factor is not ZERO]


def _parts(expr: Expr) -> Parts:
    if expr is ZERO:
        return {}
    if "d" not in axes_of(expr):
        return {ONE: expr}
    match expr:
        case Call("add", (x, y)):
            return _joined(_parts(x), _parts(y))
        case Call("sub", (x, y)):
            return _joined(_parts(x), {b: negative(f) for b, f in _parts(y).items()})
        case Call("neg", (x,)):
            return {b: negative(f) for b, f in _parts(x).items()}
        case Call("mul", (x, y)):
            return _product(expr, _parts(x), _parts(y))
        case Call("div", (x, y)) if "d" not in axes_of(y):
            return {b: over(f, y) for b, f in _parts(x).items()}
        case Call("where", (c, x, y)) if "d" not in axes_of(c):
            return _joined(
                {b: chosen(c, f) for b, f in _parts(x).items()},
                {b: chosen(c, f, otherwise=True) for b, f in _parts(y).items()},
            )
        case _:
            return {expr: ONE}


def _product(expr: Expr, left: Parts, right: Parts) -> Parts:
    if len(left) != 1 or len(right) != 1:
        return {expr: ONE}
    ((x, f),), ((y, g),) = left.items(), right.items()
    body = y if x is ONE else x if y is ONE else make("mul", x, y)
    return {body: times(f, g)}


def _joined(left: Parts, right: Parts) -> Parts:
    joined = dict(left)
    for body, factor in right.items():
        joined[body] = make("add", joined[body], factor) if body in joined else factor
    return joined
