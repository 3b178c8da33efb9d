"""Turns a Program into the same Program with constants folded and trivial operations removed.

Takes any verified program; leaves one in which no rule of ``simplify`` applies, so running it
again changes nothing. Example: ``mask = true and q - 0 >= k`` becomes ``mask = q >= k``; ``score
** 2.0`` becomes ``score * score``.

Every rule is exact for infinities, NaN and signed zeros: ``x * 0``, ``x - x`` and ``x + 0.0``
stay for floats (they matter when x is inf, NaN or -0.0) and are removed only for integers. The
one deliberate choice is ``x ** 0.5``, which becomes ``sqrt(x)`` because torch computes it that
way.
"""

from __future__ import annotations

from attncompiler.ir.expr import Call, Const, Expr, Index, Size, kind_of
from attncompiler.ir.passes.arithmetic_rules import (
    is_integral,
    simplify_conversion,
    simplify_division,
    simplify_extremum,
    simplify_power,
    simplify_product,
    simplify_sum,
)
from attncompiler.ir.passes.fold import fold
from attncompiler.ir.passes.logic_rules import simplify_comparison, simplify_logic, simplify_where
from attncompiler.ir.program import Program

_COMMUTATIVE = frozenset(
    ["add", "mul", "min", "max", "eq", "ne", "and", "or", "bitand", "bitor", "bitxor"]
)
_SWAPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}


def canonicalize(program: Program) -> Program:
    """Fold constants and remove operations that do nothing; the same object when nothing applies."""
    while (simpler := program.rewritten(simplify)) is not program:
        program = simpler
    return program


def make(op: str, *args: Expr) -> Expr:
    """The call, simplified: what passes use to build expressions."""
    return simplify(Call(op, args))


def simplify(expr: Expr) -> Expr:
    """One node over simplified operands, with every rule that applies at its root applied."""
    while isinstance(expr, Call):
        simpler = _step(expr)
        if simpler is expr:
            return expr
        expr = simpler
    return expr


def _step(call: Call) -> Expr:
    op, args = call.op, call.args
    folded = fold(op, args)
    if folded is not None:
        return folded
    if len(args) == 2 and isinstance(args[0], Const) and not isinstance(args[1], Const):
        if op in _COMMUTATIVE:
            return Call(op, (args[1], args[0]))
        if op in _SWAPPED:
            return Call(_SWAPPED[op], (args[1], args[0]))
    match op, args:
        case "add" | "sub" | "neg", _:
            return simplify_sum(call)
        case "mul" | "div", (x, y):
            return simplify_product(call, x, y)
        case "pow", (x, y):
            return simplify_power(call, x, y)
        case "floordiv" | "mod", (x, y) if kind_of(x) == "int":
            return simplify_division(call, x, y)
        case "and" | "or" | "not", _:
            return simplify_logic(call)
        case "eq" | "ne" | "lt" | "le" | "gt" | "ge", (x, y):
            return simplify_comparison(call, x, y)
        case "where", (c, x, y):
            return simplify_where(call, c, x, y)
        case "min" | "max", (x, y):
            return simplify_extremum(call, x, y)
        case (("bitand" | "bitor"), (x, y)) if x is y:
            return x
        case (("bitor" | "bitxor" | "shl" | "shr"), (x, Const(0))):
            return x
        case "bitand", (_, Const(0)):
            return Const(0)
        case "abs", (Call("neg" | "abs", (x,)),):
            return Call("abs", (x,))
        case "abs", ((Index() | Size()) as x,):
            return x
        case (("floor" | "ceil" | "trunc" | "round"), (x,)) if is_integral(x):
            return x
        case "to_float" | "to_int" | "to_bool", (x,):
            return simplify_conversion(call, x)
        case _:
            return call
