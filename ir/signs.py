"""Turns an expression into a proof that it is never negative, where its form gives one."""

from __future__ import annotations

from collections.abc import Iterable

from attncompiler.ir.expr import Call, Const, Expr, Index, Size, Stat, kind_of, walk
from attncompiler.ir.program import Reduction

_NEVER_NEGATIVE = frozenset(["exp", "exp2", "abs", "sqrt", "rsqrt", "sigmoid"])


def nonnegative(expr: Expr, stats: frozenset[str] = frozenset()) -> bool:
    """Whether the value is >= 0 (or NaN) whatever its leaves are.

    ``stats`` names the row statistics known to be nonnegative.
    """
    proven: dict[Expr, bool] = {}
    for node in walk(expr):
        proven[node] = _holds(node, proven, stats)
    return proven[expr]


def _holds(node: Expr, proven: dict[Expr, bool], stats: frozenset[str]) -> bool:
    match node:
        case Const(value):
            return value >= 0
        case Index() | Size():
            return True
        case Stat(name):
            return name in stats
        case Call(op, _) if op in _NEVER_NEGATIVE:
            return True
        case Call("mul", (x, y)):
            return x is y or (proven[x] and proven[y])
        case Call("add" | "div" | "min" | "pow", (x, y)):
            return proven[x] and proven[y]
        case Call("max", (x, y)):
            return proven[x] or proven[y]
        case Call("where", (_, x, y)):
            return proven[x] and proven[y]
        case Call("to_float" | "to_int", (x,)):
            return kind_of(x) == "bool" or proven[x]
        case _:
            return False


def nonnegative_stats(reductions: Iterable[Reduction]) -> frozenset[str]:
    """Names of the sums and minima over nonnegative terms (a maximum over no keys is -inf)."""
    known: frozenset[str] = frozenset()
    for r in reductions:
        if r.op != "max" and nonnegative(r.body, known):
            known |= {r.name}
    return known
