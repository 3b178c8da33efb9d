"""The functions a symbol answers: turns a torch function, tensor method or DSL function, by name, into expressions.

One table serves ``torch.f(x)``, ``x.f()``, ``torch.nn.functional.f(x)`` and ``attncompiler.dsl.f(x)``, because
the FlexAttention bodies people bring use all of them.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from attncompiler import arithmetic as ar
from attncompiler import elementwise as ew
from attncompiler import errors
from attncompiler.elementwise import Builder
from attncompiler.ir.ops import Kind
from attncompiler.recorder import Recorder


def apply(
    rec: Recorder, table: dict[str, Builder], name: str, *args: Any, shown: str = "", **kwargs: Any
) -> Any:
    """The symbol for function ``name`` of FUNCTIONS or METHODS, applied to symbols and numbers.

    ``shown`` is how the user wrote the function. Raises UnknownFunctionError, or ArgumentsError when the function
    does not take these arguments.
    """
    builder = table.get(name)
    if builder is None:
        raise unknown_function(rec, name, shown or name)
    operands = [_operand(rec, a) for a in args]
    named = {key: _operand(rec, a) for key, a in kwargs.items()}
    try:
        _signature(builder).bind(rec, *operands, **named)
    except TypeError as mismatch:
        raise errors.ArgumentsError(
            location=rec.here(),
            name=shown or name,
            detail=str(mismatch),
            fix="inside a formula it takes " + _parameters(builder),
        ) from None
    return rec.symbol(builder(rec, *operands, **named))


def _operand(rec: Recorder, value: Any) -> Any:
    """Options (None, strings, dtypes, sizes) pass through, everything else becomes an operand."""
    if value is None or isinstance(value, (str, tuple, list)) or _is_option(value):
        return value
    return rec.operand(value)


def _is_option(value: object) -> bool:
    return type(value).__module__ == "torch" and type(value).__name__ in {
        "dtype",
        "device",
        "memory_format",
        "layout",
        "Size",
    }


@cache
def _signature(builder: Builder) -> inspect.Signature:
    return inspect.signature(builder)


def _parameters(builder: Builder) -> str:
    return ", ".join(list(_signature(builder).parameters)[1:])


_REDUCTIONS = frozenset(
    {"sum", "mean", "amax", "amin", "prod", "std", "var", "norm", "softmax", "log_softmax"}
    | {"argmax", "argmin", "cumsum", "any", "all", "sort", "topk", "matmul", "dot", "logsumexp"}
)


def unknown_function(rec: Recorder, name: str, shown: str) -> errors.UnknownFunctionError:
    """The error for a function the table does not have, with what to use instead."""
    if name in _REDUCTIONS:
        fix = (
            "a formula sees one element; row statistics come from row.sum/max/min/mean in normalize"
        )
    else:
        known = errors.nearest(name, PUBLIC_NAMES)
        fix = f"a formula works on one element; the nearest supported functions are {known}"
    return errors.UnknownFunctionError(location=rec.here(), name=shown, fix=fix)


_REAL = ("exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "tanh", "sigmoid", "erf")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_CONVERSIONS: dict[Kind, tuple[str, ...]] = {
    "float": ("float", "double", "half", "bfloat16"),
    "int": ("int", "long", "short"),
    "bool": ("bool",),
}
_NO_EFFECT = ("clone", "contiguous", "detach", "cpu", "cuda", "squeeze", "view_as")
_REFLECTED = (
    "add",
    "sub",
    "mul",
    "div",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {
        "div": ew.divided,
        "where": ew.where,
        "masked_fill": ew.masked_fill,
        "clamp": ew.clamp,
        "clip": ew.clamp,
        "clamp_min": ew.clamp_min,
        "clamp_max": ew.clamp_max,
        "max": ew.extremum("max"),
        "min": ew.extremum("min"),
        "round": ew.rounded,
        "relu": ew.relu,
        "silu": ew.silu,
        "gelu": ew.gelu,
        "softplus": ew.softplus,
        "log_sigmoid": ew.log_sigmoid,
        "logsigmoid": ew.log_sigmoid,
        "square": ew.square,
        "reciprocal": ew.reciprocal,
        "isnan": ew.is_nan,
        "isinf": ew.is_inf,
        "zeros_like": ew.filled(0),
        "ones_like": ew.filled(1),
        "full_like": ew.full_like,
        "new_zeros": ew.new_filled(0),
        "new_ones": ew.new_filled(1),
        "to": ew.converted,
        "type": ew.converted,
        "type_as": ew.converted,
        "fmod": ar.truncated_remainder,
        "pow": ar.power,
        "bitwise_not": ar.invert,
        "invert": ar.invert,
        "bit_length": ew.bit_length,
        "is_pow2": ew.is_pow2,
        "add": ew.scaled("add"),
        "sub": ew.scaled("sub"),
        "subtract": ew.scaled("sub"),
    }
    for name in (*_REAL, "sin", "cos"):
        table[name] = ew.unary(name, ar.real)
    for name in ("floor", "ceil", "trunc"):
        table[name] = ew.unary(name, ar.rounded)
    table |= {name: ew.unary(name, ar.numeric) for name in ("neg", "abs", "sign")}
    table |= {name: ew.binary(name, ar.compare) for name in _COMPARISONS}
    table["mul"] = ew.binary("mul", ar.numeric)
    table["maximum"], table["minimum"] = ew.binary("max", ar.numeric), ew.binary("min", ar.numeric)
    table["floordiv"], table["mod"] = ew.binary("floordiv", ar.divide), ew.binary("mod", ar.divide)
    table["lshift"], table["rshift"] = ew.binary("shl", ar.bitwise), ew.binary("shr", ar.bitwise)
    for name, op in (("and", "bitand"), ("or", "bitor"), ("xor", "bitxor")):
        table[name] = table[f"bitwise_{name}"] = ew.binary(op, ar.bitwise)
    table["logical_and"], table["logical_or"] = (
        ew.binary("and", ar.logic),
        ew.binary("or", ar.logic),
    )
    table["logical_not"] = ew.unary("not", ar.logic)
    table["logical_xor"] = ar.exclusive_or
    for kind, names in _CONVERSIONS.items():
        table |= {name: ew.conversion(kind) for name in names}
    table |= dict.fromkeys(_NO_EFFECT, ew.unchanged)
    for name in _REFLECTED:
        table[f"r{name}"] = ew.reflected(table[name])
    table["rtruediv"] = table["rdiv"]
    return table | {alias: table[name] for alias, name in _ALIASES.items()}


_ALIASES = {
    "absolute": "abs",
    "negative": "neg",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "truediv": "div",
    "floor_divide": "floordiv",
    "remainder": "mod",
    "special_expit": "sigmoid",
    "special_erf": "erf",
    "special_exp2": "exp2",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "fix": "trunc",
    "sgn": "sign",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "fmax": "maximum",
    "fmin": "minimum",
    "bitwise_left_shift": "lshift",
    "bitwise_right_shift": "rshift",
    "to_float": "float",
    "to_int": "int",
    "to_bool": "bool",
}

FUNCTIONS: dict[str, Builder] = _table()
METHODS: dict[str, Builder] = FUNCTIONS | {"where": ew.where_method}
PUBLIC_NAMES = frozenset(FUNCTIONS) - {"and", "or", "xor", "mod"}
