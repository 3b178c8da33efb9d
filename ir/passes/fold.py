"""Turns an operator applied to constants into the constant that the interpreter would compute.

Nothing is folded where Python and the machine could differ: NaN operands of arithmetic, two zeros
under min and max, the remainder of floats, division by zero, shifts out of range, integers beyond
64 bits.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

from attncompiler.ir.expr import Const, Expr

Number = bool | int | float

_ANY: dict[str, Callable[..., Number]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "neg": operator.neg,
    "abs": abs,
    "min": min,
    "max": max,
    "sign": lambda x: type(x)((x > 0) - (x < 0)),
    "bitand": operator.and_,
    "bitor": operator.or_,
    "bitxor": operator.xor,
    "shl": operator.lshift,
    "shr": operator.rshift,
    "bit_length": lambda x: x.bit_length(),
    "and": lambda x, y: x and y,
    "or": lambda x, y: x or y,
    "not": operator.not_,
    "to_float": float,
    "to_int": int,
    "to_bool": bool,
    "where": lambda c, x, y: x if c else y,
}
_COMPARE: dict[str, Callable[[Number, Number], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_FLOAT: dict[str, Callable[..., float]] = {
    "div": operator.truediv,
    "pow": math.pow,
    "exp": math.exp,
    "exp2": lambda x: math.pow(2.0, x),
    "expm1": math.expm1,
    "log": math.log,
    "log2": math.log2,
    "log1p": math.log1p,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: 1.0 / math.sqrt(x),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1.0 / (1.0 + math.exp(-x)),
    "erf": math.erf,
    "sin": math.sin,
    "cos": math.cos,
    "floor": lambda x: math.copysign(math.floor(x), x),
    "ceil": lambda x: math.copysign(math.ceil(x), x),
    "trunc": lambda x: math.copysign(math.trunc(x), x),
    "round": lambda x: math.copysign(round(x), x),
}


def fold(op: str, args: tuple[Expr, ...]) -> Const | None:
    """The constant that ``op`` gives on constants; None when an operand is not one or it is unsafe."""
    values: list[Number] = []
    for a in args:
        if not isinstance(a, Const):
            return None
        values.append(a.value)
    if op in _COMPARE:
        return Const(_COMPARE[op](*values))
    if op != "where" and not _is_safe(op, values):
        return None
    try:
        value = (_ANY.get(op) or _FLOAT[op])(*values)
    except (ArithmeticError, ValueError):
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    return Const(value)


def _is_safe(op: str, values: list[Number]) -> bool:
    floats = [v for v in values if isinstance(v, float)]
    match op:
        case "min" | "max":
            return not any(math.isnan(v) for v in floats) and not (floats and set(values) == {0.0})
        case "floordiv" | "mod":
            return not floats
        case "shl" | "shr":
            return 0 <= values[1] < 63
        case _:
            return not any(math.isnan(v) for v in floats)
