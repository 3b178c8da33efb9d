"""The functions a symbol answers: turns a torch function, tensor method or DSL function, by name, into expressions.

One table serves ``torch.f(x)``, ``x.f()``, ``torch.nn.functional.f(x)`` and ``attncompiler.dsl.f(x)``, because
the FlexAttention bodies people bring use all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from attncompiler import arithmetic as ar
from attncompiler import errors
from attncompiler.ir.expr import Call, Const, Expr, kind_of
from attncompiler.recorder import Operand, Recorder, torch_kind

Builder = Callable[..., Expr]


def apply(
    rec: Recorder, table: dict[str, Builder], name: str, *args: Any, shown: str = "", **kwargs: Any
) -> Any:
    """The symbol for function ``name`` of FUNCTIONS or METHODS, applied to symbols and numbers.

    ``shown`` is how the user wrote the function. Raises UnknownFunctionError, or ArgumentsError when the function
    does not take these arguments.
    """
    builder = table.get(name)
    if builder is None:
        raise errors.UnknownFunctionError(
            location=rec.here(), name=shown or name, known=errors.nearest(name, PUBLIC_NAMES)
        )
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


def _unary(op: str, kind: Callable[..., Expr]) -> Builder:
    def build(rec: Recorder, input: Operand) -> Expr:
        return kind(rec, op, input)

    return build


def _binary(op: str, kind: Callable[..., Expr]) -> Builder:
    def build(rec: Recorder, input: Operand, other: Operand) -> Expr:
        return kind(rec, op, input, other)

    return build


def _reflected(builder: Builder) -> Builder:
    def build(rec: Recorder, input: Operand, other: Operand) -> Expr:
        return builder(rec, other, input)

    return build


def _scaled(op: str) -> Builder:
    def build(rec: Recorder, input: Operand, other: Operand, *, alpha: Operand = 1) -> Expr:
        term = other if alpha == 1 else ar.numeric(rec, "mul", alpha, other)
        return ar.numeric(rec, op, input, term)

    return build


def _div(
    rec: Recorder, input: Operand, other: Operand, *, rounding_mode: str | None = None
) -> Expr:
    match rounding_mode:
        case None:
            return ar.real(rec, "div", input, other)
        case "floor":
            return ar.divide(rec, "floordiv", input, other)
        case "trunc":
            return ar.truncated_division(rec, input, other)
        case _:
            raise errors.ArgumentsError(
                location=rec.here(),
                name="div",
                detail=f"rounding_mode={rounding_mode!r}",
                fix='use None, "floor" or "trunc"',
            )


def _where(rec: Recorder, condition: Operand, input: Operand, other: Operand) -> Expr:
    return ar.where(rec, condition, input, other)


def _where_method(rec: Recorder, input: Operand, condition: Operand, other: Operand) -> Expr:
    return ar.where(rec, condition, input, other)


def _masked_fill(rec: Recorder, input: Operand, mask: Operand, value: Operand) -> Expr:
    return ar.where(rec, mask, value, input)


def _clamp(
    rec: Recorder, input: Operand, min: Operand | None = None, max: Operand | None = None
) -> Expr:
    value: Operand = input
    if min is not None:
        value = ar.numeric(rec, "max", value, min)
    if max is not None:
        value = ar.numeric(rec, "min", value, max)
    return rec.convert(value, "float") if isinstance(value, float) else _expr(rec, value)


def _expr(rec: Recorder, value: Operand) -> Expr:
    return rec.convert(value, ar.kind_of_operand(value))


def _extremum(op: str) -> Builder:
    def build(rec: Recorder, input: Operand, other: Operand | None = None) -> Expr:
        if other is None:
            raise errors.ArgumentsError(
                location=rec.here(),
                name=op,
                detail="a reduction; a formula sees one element",
                fix=f"take a row statistic with row.{op}(...) in normalize, or give two values",
            )
        return ar.numeric(rec, op, input, other)

    return build


def _round(rec: Recorder, input: Operand, *, decimals: Operand = 0) -> Expr:
    if decimals != 0:
        raise errors.ArgumentsError(
            location=rec.here(), name="round", detail="decimals", fix="round(x * 10) / 10"
        )
    return ar.rounded(rec, "round", input)


def _real_const(rec: Recorder, value: float) -> Expr:
    return Const(value)


def _relu(rec: Recorder, input: Operand, inplace: object = False) -> Expr:
    return ar.numeric(rec, "max", input, 0)


def _silu(rec: Recorder, input: Operand, inplace: object = False) -> Expr:
    return ar.real(rec, "mul", input, ar.real(rec, "sigmoid", input))


def _gelu(rec: Recorder, input: Operand, approximate: str = "none") -> Expr:
    x = rec.convert(input, "float")
    if approximate == "tanh":
        cubic = Call("mul", (Const(0.044715), Call("mul", (x, Call("mul", (x, x))))))
        inner = Call(
            "tanh", (Call("mul", (Const((2 / 3.141592653589793) ** 0.5), Call("add", (x, cubic)))),)
        )
    else:
        inner = Call("erf", (Call("mul", (x, Const(0.5**0.5))),))
    return Call("mul", (Call("mul", (Const(0.5), x)), Call("add", (Const(1.0), inner))))


def _softplus(
    rec: Recorder, input: Operand, beta: Operand = 1.0, threshold: Operand = 20.0
) -> Expr:
    scaled = input if beta == 1 else ar.real(rec, "mul", beta, input)
    soft = ar.real(rec, "log1p", ar.real(rec, "exp", scaled))
    if beta != 1:
        soft = ar.real(rec, "div", soft, beta)
    return ar.where(
        rec, ar.compare(rec, "gt", scaled, threshold), rec.convert(input, "float"), soft
    )


def _log_sigmoid(rec: Recorder, input: Operand) -> Expr:
    x = rec.convert(input, "float")
    tail = Call("log1p", (Call("exp", (Call("neg", (Call("abs", (x,)),)),)),))
    return Call("sub", (Call("min", (x, Const(0.0))), tail))


def _square(rec: Recorder, input: Operand) -> Expr:
    return ar.numeric(rec, "mul", input, input)


def _reciprocal(rec: Recorder, input: Operand) -> Expr:
    return ar.real(rec, "div", 1.0, input)


def _is_nan(rec: Recorder, input: Operand) -> Expr:
    return ar.compare(rec, "ne", input, input)


def _is_inf(rec: Recorder, input: Operand) -> Expr:
    return ar.compare(rec, "eq", ar.real(rec, "abs", input), float("inf"))


def _filled(value: float) -> Builder:
    def build(
        rec: Recorder, input: Operand, *, dtype: object = None, device: object = None
    ) -> Expr:
        return rec.convert(value, torch_kind(dtype) if dtype else ar.kind_of_operand(input))

    return build


def _full_like(
    rec: Recorder,
    input: Operand,
    fill_value: Operand,
    *,
    dtype: object = None,
    device: object = None,
) -> Expr:
    return rec.convert(fill_value, torch_kind(dtype) if dtype else ar.kind_of_operand(input))


def _new_filled(value: float) -> Builder:
    def build(
        rec: Recorder,
        input: Operand,
        size: object = (),
        *,
        dtype: object = None,
        device: object = None,
        requires_grad: object = False,
    ) -> Expr:
        return rec.convert(value, torch_kind(dtype) if dtype else ar.kind_of_operand(input))

    return build


def _to(kind: ar.Kind) -> Builder:
    def build(rec: Recorder, input: Operand) -> Expr:
        return rec.convert(input, kind, lift=False)

    return build


def _convert(rec: Recorder, input: Operand, *target: object, **options: object) -> Expr:
    """``x.to(dtype)``, ``x.to(device)``, ``x.to(device, dtype)``, ``x.type(dtype)``; float widths are all one."""
    for value in (*target, *options.values()):
        if type(value).__name__ == "dtype":
            return rec.convert(input, torch_kind(value))
        if isinstance(value, Expr):
            return rec.convert(input, kind_of(value))
    return _expr(rec, input)


def _same(rec: Recorder, input: Operand, *options: object, **named: object) -> Expr:
    return _expr(rec, input)


def _bit_length(rec: Recorder, input: Operand) -> Expr:
    return Call("bit_length", (rec.convert(input, "int"),))


def _is_pow2(rec: Recorder, input: Operand) -> Expr:
    x = rec.convert(input, "int")
    single = Call("eq", (Call("bitand", (x, Call("sub", (x, Const(1))))), Const(0)))
    return Call("and", (Call("gt", (x, Const(0))), single))


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {
        "div": _div,
        "where": _where,
        "masked_fill": _masked_fill,
        "clamp": _clamp,
        "clip": _clamp,
        "max": _extremum("max"),
        "min": _extremum("min"),
        "round": _round,
        "relu": _relu,
        "silu": _silu,
        "gelu": _gelu,
        "softplus": _softplus,
        "log_sigmoid": _log_sigmoid,
        "logsigmoid": _log_sigmoid,
        "square": _square,
        "reciprocal": _reciprocal,
        "isnan": _is_nan,
        "isinf": _is_inf,
        "zeros_like": _filled(0),
        "ones_like": _filled(1),
        "full_like": _full_like,
        "new_zeros": _new_filled(0),
        "new_ones": _new_filled(1),
        "to": _convert,
        "type": _convert,
        "type_as": _convert,
        "fmod": ar.truncated_remainder,
        "pow": ar.power,
        "bitwise_not": ar.invert,
        "invert": ar.invert,
        "bit_length": _bit_length,
        "is_pow2": _is_pow2,
        "add": _scaled("add"),
        "sub": _scaled("sub"),
        "subtract": _scaled("sub"),
    }
    for name in "exp exp2 expm1 log log2 log1p sqrt rsqrt tanh sigmoid erf sin cos".split():
        table[name] = _unary(name, ar.real)
    for name in "floor ceil trunc".split():
        table[name] = _unary(name, ar.rounded)
    table |= {name: _unary(name, ar.numeric) for name in ("neg", "abs", "sign")}
    table |= {name: _binary(name, ar.compare) for name in "eq ne lt le gt ge".split()}
    table["mul"] = _binary("mul", ar.numeric)
    table["maximum"], table["minimum"] = _binary("max", ar.numeric), _binary("min", ar.numeric)
    table["floordiv"], table["mod"] = _binary("floordiv", ar.divide), _binary("mod", ar.divide)
    table["lshift"], table["rshift"] = _binary("shl", ar.bitwise), _binary("shr", ar.bitwise)
    for name, op in (("and", "bitand"), ("or", "bitor"), ("xor", "bitxor")):
        table[name] = table[f"bitwise_{name}"] = _binary(op, ar.bitwise)
    table["logical_and"], table["logical_or"] = _binary("and", ar.logic), _binary("or", ar.logic)
    table["logical_not"] = _unary("not", ar.logic)
    table["logical_xor"] = ar.exclusive_or
    for kind, names in (
        ("float", "float double half bfloat16"),
        ("int", "int long short"),
        ("bool", "bool"),
    ):
        table |= {name: _to(kind) for name in names.split()}  # type: ignore[arg-type]
    table |= {name: _same for name in "clone contiguous detach cpu cuda squeeze view_as".split()}
    for name in "add sub mul div truediv floordiv mod pow and or xor lshift rshift".split():
        table[f"r{name}"] = _reflected(table["div" if name == "truediv" else name])
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
METHODS: dict[str, Builder] = FUNCTIONS | {"where": _where_method}
PUBLIC_NAMES = frozenset(FUNCTIONS) - {"and", "or", "xor", "mod"}
