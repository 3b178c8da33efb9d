"""Turns logic, comparisons and choices into simpler ones of exactly the same value.

The rules of ``ir/passes/canonicalize.py`` for conditions; see ``ir/passes/arithmetic_rules.py``.
"""

from __future__ import annotations

from attncompiler.ir.expr import Call, Const, Expr, kind_of

_NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
_EXACT_IN_FLOAT32 = 2**24


def simplify_logic(call: Call) -> Expr:
    """Rules of and, or and not."""
    match call.op, call.args:
        case "not", (Call("not", (x,)),):
            return x
        case "not", (Call(("eq" | "ne") as op, pair),):
            return Call(_NEGATED[op], pair)
        case "not", (Call(op, pair),) if op in _NEGATED and kind_of(pair[0]) == "int":
            return Call(_NEGATED[op], pair)  # not for floats: NaN fails both ways
        case op, (x, Const(bool() as c)):
            return x if c == (op == "and") else Const(c)
        case _, (x, y) if x is y:
            return x
        case op, (x, Call("not", (y,))) | (Call("not", (y,)), x) if x is y:
            return Const(op == "or")
        case _:
            return call


def simplify_comparison(call: Call, x: Expr, y: Expr) -> Expr:
    """Comparisons whose answer, or whose kind of operand, is known."""
    match call.op, x, y:
        case ("eq" | "ne") as op, _, Const(bool() as c):
            return x if c == (op == "eq") else Call("not", (x,))
        case op, Call("to_float", (n,)), Const(float() as c) if (
            kind_of(n) == "int" and c.is_integer() and abs(c) <= _EXACT_IN_FLOAT32
        ):
            return Call(op, (n, Const(int(c))))
        case (("lt" | "gt" | "ne"), _, _) if x is y and (call.op != "ne" or kind_of(x) != "float"):
            return Const(False)
        case (("le" | "ge" | "eq"), _, _) if x is y and kind_of(x) != "float":
            return Const(True)
        case _:
            return call


def simplify_where(call: Call, c: Expr, x: Expr, y: Expr) -> Expr:
    """Choices that are known, or that are logic."""
    match c, x, y:
        case Const(bool() as chosen), _, _:
            return x if chosen else y
        case _ if x is y:
            return x
        case Call("not", (d,)), _, _:
            return Call("where", (d, y, x))
        case _, Const(True), _ if kind_of(y) == "bool":
            return Call("or", (c, y))
        case _, _, Const(False) if kind_of(x) == "bool":
            return Call("and", (c, x))
        case _, Const(False), Const(True):
            return Call("not", (c,))
        case _, Call("where", (d, inner, _)), _ if d is c:
            return Call("where", (c, inner, y))
        case _, _, Call("where", (d, _, inner)) if d is c:
            return Call("where", (c, x, inner))
        case _:
            return call
