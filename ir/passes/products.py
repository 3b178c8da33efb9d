"""Regroups products: an element is multiplied once, by the product of its row's factors.

A division by a value of the row becomes a multiplication by its inverse. Example: ``tanh(dot / cap) * cap * c``
becomes ``tanh(dot * (1 / cap)) * (cap * c)``. Nothing changes inside conditions and indices, where the last bit of a
number can matter, so that every loop that computes them finds the same.
"""

from __future__ import annotations

from attncompiler.ir.expr import Call, Const, Expr, axes_of, kind_of, walk, with_children
from attncompiler.ir.passes.canonicalize import make


def factored(expr: Expr) -> Expr:
    """The formula with the row's factors of every product gathered, and divisions by them made products."""
    if kind_of(expr) != "float":
        return expr
    memo: dict[Expr, Expr] = {}
    for node in walk(expr):
        new = node
        if isinstance(node, Call) and kind_of(node) == "float":
            new = with_children(
                node, tuple(memo[x] if kind_of(x) == "float" else x for x in node.args)
            )
            if node.op in ("mul", "div", "neg") and _inner(new):
                new = _regrouped(new)
        memo[node] = new
    return memo[expr]


def _inner(node: Expr) -> bool:
    """Whether a value differs from element to element of a row."""
    return bool(axes_of(node) & {"k", "d"})


def _regrouped(node: Expr) -> Expr:
    elements, above, below, negative = _factors(node)
    if len(above) + negative <= 1 and not below:
        return node
    row: Expr = Const(-1.0 if negative else 1.0)
    for factor in above:
        row = make("mul", factor, row) if row is not Const(1.0) else factor
    for factor in below:
        row = make("div", row, factor)
    result = elements[0]
    for element in elements[1:]:
        result = make("mul", result, element)
    if row is Const(1.0):
        return result
    return make("neg", result) if row is Const(-1.0) else make("mul", result, row)


def _factors(node: Expr) -> tuple[list[Expr], list[Expr], list[Expr], bool]:
    """Elements multiplied, row factors above and below the line, and whether the product is negated."""
    if not _inner(node):
        match node:
            case Const(-1.0):
                return [], [], [], True
            case _:
                return [], [node], [], False
    match node:
        case Call("neg", (x,)):
            elements, above, below, negative = _factors(x)
            return elements, above, below, not negative
        case Call("mul", (x, y)):
            left, right = _factors(x), _factors(y)
            return (
                left[0] + right[0],
                left[1] + right[1],
                left[2] + right[2],
                left[3] != right[3],
            )
        case Call("div", (x, y)) if not _inner(y) and _inner(x):
            elements, above, below, negative = _factors(x)
            return elements, above, [*below, y], negative
        case _:
            return [node], [], [], False
