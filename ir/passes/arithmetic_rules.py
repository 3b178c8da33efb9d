"""Turns sums, products, powers and other arithmetic into simpler arithmetic of exactly the same value.

The rules of ``ir/passes/canonicalize.py`` for numbers. Each looks at one call whose operands are simple
already and returns the same object when it has nothing to do.
"""

from __future__ import annotations

import math

from attncompiler.ir.expr import Call, Const, Expr, kind_of
from attncompiler.ir.passes.fold import fold

_LARGEST_POWER = 8
_LARGEST_INT = 2**63


def is_integral(x: Expr) -> bool:
    """Whether a float is known to be integral (or not finite)."""
    match x:
        case Call("floor" | "ceil" | "trunc" | "round", _):
            return True
        case Call("to_float", (y,)):
            return kind_of(y) != "float"
        case _:
            return False


def _is_zero(x: Expr, *, negative: bool) -> bool:
    """Whether adding x changes nothing: the integer 0, or the float zero of the given sign."""
    match x:
        case Const(bool()):
            return False
        case Const(int() as value):
            return value == 0
        case Const(float() as value):
            return value == 0 and (math.copysign(1.0, value) < 0) == negative
        case _:
            return False


def _never_minus_zero(x: Expr) -> bool:
    match x:
        case Const(value):
            return not _is_zero(x, negative=True) or isinstance(value, int)
        case Call("exp" | "exp2" | "sigmoid" | "abs" | "to_float", _):
            return True
        case _:
            return False


def simplify_sum(call: Call) -> Expr:
    """Rules of add, sub and neg."""
    match call.op, call.args:
        case "neg", (Call("neg", (x,)),):
            return x
        case "add", (x, Call("neg", (y,))):
            return Call("sub", (x, y))
        case "add", (Call("neg", (x,)), y):
            return Call("sub", (y, x))
        case "sub", (x, Call("neg", (y,))):
            return Call("add", (x, y))
        case "add", (x, y) if _is_zero(y, negative=True):
            return x
        case "add", (x, y) if _is_zero(y, negative=False) and _never_minus_zero(x):
            return x
        case "sub", (x, y) if _is_zero(y, negative=False):
            return x
        case "sub", (x, y) if _is_zero(x, negative=True):
            return Call("neg", (y,))
        case "sub", (x, y) if x is y and kind_of(x) == "int":
            return Const(0)
        case op, (Call(("add" | "sub") as inner, (x, Const(int() as a))), Const(int() as b)):
            total = (a if inner == "add" else -a) + (b if op == "add" else -b)
            fits = abs(total) < _LARGEST_INT
            return Call("add" if total >= 0 else "sub", (x, Const(abs(total)))) if fits else call
        case op, (x, Const(int() as a)) if -_LARGEST_INT < a < 0:
            return Call("sub" if op == "add" else "add", (x, Const(-a)))
        case _:
            return call


def simplify_product(call: Call, x: Expr, y: Expr) -> Expr:
    """Rules of mul and div."""
    one, minus_one = (Const(1.0), Const(-1.0)) if kind_of(x) == "float" else (Const(1), Const(-1))
    if y is one:
        return x
    if y is minus_one:
        return Call("neg", (x,))
    match call.op, x, y:
        case "mul", _, Const(0) if kind_of(y) == "int":
            return y
        case "mul", Call("mul", (z, Const(int() as a))), Const(int() as b) if (
            abs(a * b) < _LARGEST_INT
        ):
            return Call("mul", (z, Const(a * b)))
        case op, Call("neg", (a,)), Call("neg", (b,)):
            return Call(op, (a, b))
        case "div", _, Const(float() as c) if _has_exact_inverse(c):
            return Call("mul", (x, Const(1.0 / c)))
        case _:
            return call


def _has_exact_inverse(c: float) -> bool:
    """Powers of two whose inverse is a normal number in every floating type we compute in."""
    return 2.0**-60 <= abs(c) <= 2.0**60 and abs(math.frexp(c)[0]) == 0.5


def simplify_power(call: Call, x: Expr, y: Expr) -> Expr:
    """Small constant exponents become products and roots."""
    match x, y:
        case _, Const(0.5):
            return Call("sqrt", (x,))
        case _, Const(-0.5):
            return Call("rsqrt", (x,))
        case _, Const(float() as n) if n.is_integer() and abs(n) <= _LARGEST_POWER:
            positive = _repeated(x, int(abs(n)))
            return positive if n >= 0 else Call("div", (Const(1.0), positive))
        case Const(2.0), _:
            return Call("exp2", (y,))
        case _:
            return call


def _repeated(x: Expr, n: int) -> Expr:
    if n <= 1:
        return x if n else Const(1.0)
    half = _repeated(x, n // 2)
    square = Call("mul", (half, half))
    return Call("mul", (square, x)) if n % 2 else square


def simplify_division(call: Call, x: Expr, y: Expr) -> Expr:
    """Rules of floordiv and mod of integers."""
    match call.op, x, y:
        case "floordiv", _, Const(1):
            return x
        case "mod", _, Const(1 | -1):
            return Const(0)
        case "floordiv", Call("floordiv", (z, Const(int() as a))), Const(int() as b) if (
            a > 0 < b and a * b < _LARGEST_INT
        ):
            return Call("floordiv", (z, Const(a * b)))
        case "mod", Call("mod", (_, inner)), _ if inner is y:
            return x
        case _:
            return call


def simplify_extremum(call: Call, x: Expr, y: Expr) -> Expr:
    """Rules of min and max."""
    match call.op, x, y:
        case _ if x is y:
            return x
        case "max", _, Const(float() as c) if c == -math.inf:
            return x
        case "min", _, Const(float() as c) if c == math.inf:
            return x
        case op, Call(inner, (z, Const() as a)), Const() if inner == op:
            both = fold(op, (a, y))
            return call if both is None else Call(op, (z, both))
        case _:
            return call


def simplify_conversion(call: Call, x: Expr) -> Expr:
    """Conversions that change nothing, and conversions of conversions."""
    match call.op, x:
        case _ if call.op == f"to_{kind_of(x)}":
            return x
        case ("to_float" | "to_bool") as op, Call("to_int", (y,)) if kind_of(y) == "bool":
            return Call(op, (y,))
        case "to_int", Call("to_float", (y,)) if kind_of(y) == "bool":
            return Call("to_int", (y,))
        case _:
            return call
