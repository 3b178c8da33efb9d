"""Builders of single functions: turns a torch function's arguments, options included, into one expression.

Each takes the recorder and the arguments under torch's own parameter names.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from attncompiler import arithmetic as ar
from attncompiler import errors
from attncompiler.ir.expr import Call, Const, Expr, kind_of
from attncompiler.ir.ops import Kind
from attncompiler.recorder import Operand, Recorder, kind_of_operand, torch_kind

Builder = Callable[..., Expr]


def unary(op: str, kind: Callable[..., Expr]) -> Builder:
    """A function of one value."""

    def build(rec: Recorder, input: Operand) -> Expr:
        return kind(rec, op, input)

    return build


def binary(op: str, kind: Callable[..., Expr]) -> Builder:
    """A function of two values."""

    def build(rec: Recorder, input: Operand, other: Operand) -> Expr:
        return kind(rec, op, input, other)

    return build


def reflected(builder: Builder) -> Builder:
    """The same function with its arguments swapped."""

    def build(rec: Recorder, input: Operand, other: Operand) -> Expr:
        return builder(rec, other, input)

    return build


def scaled(op: str) -> Builder:
    """``add`` and ``sub`` with torch's ``alpha``, which multiplies the second argument."""

    def build(rec: Recorder, input: Operand, other: Operand, *, alpha: Operand = 1) -> Expr:
        term = other if alpha == 1 else ar.numeric(rec, "mul", alpha, other)
        return ar.numeric(rec, op, input, term)

    return build


def divided(
    rec: Recorder, input: Operand, other: Operand, *, rounding_mode: str | None = None
) -> Expr:
    """``torch.div``: true division, or rounded by ``rounding_mode``."""
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


def where(rec: Recorder, condition: Operand, input: Operand, other: Operand) -> Expr:
    """``torch.where``."""
    return ar.where(rec, condition, input, other)


def where_method(rec: Recorder, input: Operand, condition: Operand, other: Operand) -> Expr:
    """``x.where(condition, other)``."""
    return ar.where(rec, condition, input, other)


def masked_fill(rec: Recorder, input: Operand, mask: Operand, value: Operand) -> Expr:
    """``value`` where the mask holds, else the input."""
    return ar.where(rec, mask, value, input)


def clamp(
    rec: Recorder, input: Operand, min: Operand | None = None, max: Operand | None = None
) -> Expr:
    """The input limited from below, then from above."""
    value: Operand = input
    if min is not None:
        value = ar.numeric(rec, "max", value, min)
    if max is not None:
        value = ar.numeric(rec, "min", value, max)
    return rec.convert(value, "float") if isinstance(value, float) else as_expr(rec, value)


def clamp_min(rec: Recorder, input: Operand, min: Operand) -> Expr:
    """The input limited from below."""
    return ar.numeric(rec, "max", input, min)


def clamp_max(rec: Recorder, input: Operand, max: Operand) -> Expr:
    """The input limited from above."""
    return ar.numeric(rec, "min", input, max)


def as_expr(rec: Recorder, value: Operand) -> Expr:
    """A number or expression as an expression of its own kind."""
    return rec.convert(value, kind_of_operand(value))


def extremum(op: str) -> Builder:
    """``max`` or ``min`` of two values; of one value it is a reduction, which a formula cannot do."""

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


def rounded(rec: Recorder, input: Operand, *, decimals: Operand = 0) -> Expr:
    """Rounding to the nearest whole number, halves to even."""
    if decimals != 0:
        raise errors.ArgumentsError(
            location=rec.here(), name="round", detail="decimals", fix="round(x * 10) / 10"
        )
    return ar.rounded(rec, "round", input)


def relu(rec: Recorder, input: Operand, inplace: object = False) -> Expr:
    """Max(x, 0)."""
    return ar.numeric(rec, "max", input, 0)


def silu(rec: Recorder, input: Operand, inplace: object = False) -> Expr:
    """X * sigmoid(x)."""
    return ar.real(rec, "mul", input, ar.real(rec, "sigmoid", input))


def gelu(rec: Recorder, input: Operand, approximate: str = "none") -> Expr:
    """X * Phi(x), or its tanh approximation."""
    x = rec.convert(input, "float")
    if approximate == "tanh":
        cubic = Call("mul", (Const(0.044715), Call("mul", (x, Call("mul", (x, x))))))
        inner = Call("tanh", (Call("mul", (Const((2 / math.pi) ** 0.5), Call("add", (x, cubic)))),))
    else:
        inner = Call("erf", (Call("mul", (x, Const(0.5**0.5))),))
    return Call("mul", (Call("mul", (Const(0.5), x)), Call("add", (Const(1.0), inner))))


def softplus(rec: Recorder, input: Operand, beta: Operand = 1.0, threshold: Operand = 20.0) -> Expr:
    """Log(1 + exp(beta x)) / beta, linear above the threshold, as in torch."""
    scaled = input if beta == 1 else ar.real(rec, "mul", beta, input)
    soft = ar.real(rec, "log1p", ar.real(rec, "exp", scaled))
    if beta != 1:
        soft = ar.real(rec, "div", soft, beta)
    return ar.where(
        rec, ar.compare(rec, "gt", scaled, threshold), rec.convert(input, "float"), soft
    )


def log_sigmoid(rec: Recorder, input: Operand) -> Expr:
    """Log(sigmoid(x)), without overflow."""
    x = rec.convert(input, "float")
    tail = Call("log1p", (Call("exp", (Call("neg", (Call("abs", (x,)),)),)),))
    return Call("sub", (Call("min", (x, Const(0.0))), tail))


def square(rec: Recorder, input: Operand) -> Expr:
    """X * x."""
    return ar.numeric(rec, "mul", input, input)


def reciprocal(rec: Recorder, input: Operand) -> Expr:
    """1 / x."""
    return ar.real(rec, "div", 1.0, input)


def is_nan(rec: Recorder, input: Operand) -> Expr:
    """Whether x is nan: the one value that differs from itself."""
    return ar.compare(rec, "ne", input, input)


def is_inf(rec: Recorder, input: Operand) -> Expr:
    """Whether x is inf or -inf."""
    return ar.compare(rec, "eq", ar.real(rec, "abs", input), float("inf"))


def filled(value: float) -> Builder:
    """``zeros_like`` and ``ones_like``."""

    def build(
        rec: Recorder, input: Operand, *, dtype: object = None, device: object = None
    ) -> Expr:
        return rec.convert(value, torch_kind(dtype) if dtype else kind_of_operand(input))

    return build


def full_like(
    rec: Recorder,
    input: Operand,
    fill_value: Operand,
    *,
    dtype: object = None,
    device: object = None,
) -> Expr:
    """A constant of the kind of the input."""
    return rec.convert(fill_value, torch_kind(dtype) if dtype else kind_of_operand(input))


def new_filled(value: float) -> Builder:
    """``x.new_zeros(())`` and ``x.new_ones(())``."""

    def build(
        rec: Recorder,
        input: Operand,
        size: object = (),
        *,
        dtype: object = None,
        device: object = None,
        requires_grad: object = False,
    ) -> Expr:
        return rec.convert(value, torch_kind(dtype) if dtype else kind_of_operand(input))

    return build


def conversion(kind: Kind) -> Builder:
    """An explicit conversion such as ``x.float()``."""

    def build(rec: Recorder, input: Operand) -> Expr:
        return rec.convert(input, kind, lift=False)

    return build


def converted(rec: Recorder, input: Operand, *target: object, **options: object) -> Expr:
    """``x.to(dtype)``, ``x.to(device)``, ``x.to(device, dtype)``, ``x.type(dtype)``; float widths are all one."""
    for value in (*target, *options.values()):
        if type(value).__name__ == "dtype":
            return rec.convert(input, torch_kind(value))
        if isinstance(value, Expr):
            return rec.convert(input, kind_of(value))
    return as_expr(rec, input)


def unchanged(rec: Recorder, input: Operand, *options: object, **named: object) -> Expr:
    """What moves memory but changes no value."""
    return as_expr(rec, input)


def bit_length(rec: Recorder, input: Operand) -> Expr:
    """Number of binary digits."""
    return Call("bit_length", (rec.convert(input, "int"),))


def is_pow2(rec: Recorder, input: Operand) -> Expr:
    """Whether an integer is a power of two."""
    x = rec.convert(input, "int")
    single = Call("eq", (Call("bitand", (x, Call("sub", (x, Const(1))))), Const(0)))
    return Call("and", (Call("gt", (x, Const(0))), single))
