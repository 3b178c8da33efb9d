"""Turns an operator over operands of mixed kinds into calls of ``ir/ops.py`` whose kinds fit.

The rules are torch's: bool widens to int and int to float; ``/`` and the transcendental functions give floats;
``//`` and ``%`` floor; ``& | ^ ~`` are logic on bools and bit operations on ints.
"""

from __future__ import annotations

from attncompiler import errors
from attncompiler.captured_numbers import RunTimeInt
from attncompiler.ir.expr import Call, Const, Expr, axes_of
from attncompiler.recorder import Operand, Recorder, common_kind, kind_of_operand

_LOGIC = {"bitand": "and", "bitor": "or", "min": "and", "max": "or"}
_SYMBOLS = {"bitand": "&", "bitor": "|", "bitxor": "^", "shl": "<<", "shr": ">>"}


def numeric(rec: Recorder, op: str, *values: Operand) -> Expr:
    """``op`` on two numbers of one kind: add, sub, mul, min, max, or on one: neg, abs, sign.

    A literal factor of a position stays a constant: block sparsity is solved with it.
    """
    kind = common_kind(*values)
    if kind == "bool":
        if op in _LOGIC:
            return logic(rec, _LOGIC[op], *values)
        kind = "int"
    factor = op == "mul" and kind == "int" and any(map(_is_position, values))
    return Call(
        op,
        tuple(rec.convert(v, kind, lift=not factor or isinstance(v, RunTimeInt)) for v in values),
    )


def _is_position(value: Operand) -> bool:
    return not isinstance(value, (bool, int, float)) and bool(axes_of(value) & {"q", "k"})


def divide(rec: Recorder, op: str, left: Operand, right: Operand) -> Expr:
    """``floordiv`` or ``mod``. A literal divisor of ints stays a constant: block sparsity is solved with it."""
    kind = common_kind(left, right)
    if kind == "bool":
        kind = "int"
    if kind == "int" and isinstance(right, int) and right == 0:
        raise errors.ArgumentsError(
            location=rec.here(),
            name="// or %",
            detail="integer division by zero",
            fix="the divisor must not be 0",
        )
    lift = kind == "float" or isinstance(right, RunTimeInt)
    return Call(op, (rec.convert(left, kind), rec.convert(right, kind, lift=lift)))


def real(rec: Recorder, op: str, *values: Operand) -> Expr:
    """A function of floats."""
    return Call(op, tuple(rec.convert(v, "float") for v in values))


def compare(rec: Recorder, op: str, left: Operand, right: Operand) -> Expr:
    """A comparison; two bools compare by logic."""
    kind = common_kind(left, right)
    if kind == "bool" and op in ("eq", "ne"):
        differ = exclusive_or(rec, left, right)
        return differ if op == "ne" else Call("not", (differ,))
    if kind == "bool":
        kind = "int"
    return Call(op, (rec.convert(left, kind), rec.convert(right, kind)))


def logic(rec: Recorder, op: str, *values: Operand) -> Expr:
    """``and``, ``or``, ``not`` on truth values; a number is true when it is not 0."""
    return Call(op, tuple(rec.convert(v, "bool") for v in values))


def exclusive_or(rec: Recorder, left: Operand, right: Operand) -> Expr:
    """Whether exactly one of two truth values holds, in terms of and, or, not."""
    a, b = rec.convert(left, "bool"), rec.convert(right, "bool")
    return Call("or", (Call("and", (a, Call("not", (b,)))), Call("and", (Call("not", (a,)), b))))


def bitwise(rec: Recorder, op: str, left: Operand, right: Operand) -> Expr:
    """``& | ^ << >>``: logic on two bools, bits on ints; literal shift amounts stay constants."""
    kind = common_kind(left, right)
    if kind == "float":
        raise errors.KindError(
            location=rec.here(),
            op=_SYMBOLS[op],
            wanted="two bools or two ints",
            found=f"{kind_of_operand(left)} and {kind_of_operand(right)}",
            fix="put comparisons in parentheses: (a < b) & (c < d); & binds tighter than <",
        )
    shift = op in ("shl", "shr")
    if kind == "bool" and not shift:
        if op == "bitxor":
            return exclusive_or(rec, left, right)
        return logic(rec, _LOGIC[op], left, right)
    return Call(op, (rec.convert(left, "int"), rec.convert(right, "int", lift=not shift)))


def invert(rec: Recorder, value: Operand) -> Expr:
    """``~``: not on a bool, all bits flipped on an int."""
    kind = kind_of_operand(value)
    if kind == "float":
        raise errors.KindError(
            location=rec.here(),
            op="~",
            wanted="a bool or an int",
            found="float",
            fix="compare first",
        )
    if kind == "bool":
        return logic(rec, "not", value)
    return Call("bitxor", (rec.convert(value, "int"), Const(-1)))


def power(rec: Recorder, base: Operand, exponent: Operand) -> Expr:
    """``base ** exponent``. A literal exponent is part of the formula; an int to a literal int stays an int."""
    whole = kind_of_operand(base) != "float" and isinstance(exponent, int)
    if not whole:
        return Call("pow", (rec.convert(base, "float"), rec.convert(exponent, "float", lift=False)))
    assert isinstance(exponent, int)
    if not 0 <= exponent <= 64:
        raise errors.ArgumentsError(
            location=rec.here(),
            name="**",
            detail=f"an int to the power {exponent}",
            fix="convert the base to a float first: to_float(...)",
        )
    return _repeated_product(rec.convert(base, "int"), exponent)


def _repeated_product(base: Expr, exponent: int) -> Expr:
    if exponent == 0:
        return Const(1)
    half = _repeated_product(base, exponent // 2)
    square = base if exponent == 1 else Call("mul", (half, half))
    return Call("mul", (square, base)) if exponent % 2 and exponent > 1 else square


def where(rec: Recorder, condition: Operand, yes: Operand, no: Operand) -> Expr:
    """``yes`` where the condition holds, else ``no``."""
    kind = common_kind(yes, no)
    return Call(
        "where", (rec.convert(condition, "bool"), rec.convert(yes, kind), rec.convert(no, kind))
    )


def rounded(rec: Recorder, op: str, value: Operand) -> Expr:
    """floor, ceil, trunc or round of a float; an int is returned as it is."""
    if kind_of_operand(value) != "float":
        return rec.convert(value, "int")
    return real(rec, op, value)


def truncated_division(rec: Recorder, left: Operand, right: Operand) -> Expr:
    """Division rounded towards zero, as in C: ``torch.div(..., rounding_mode="trunc")``."""
    if common_kind(left, right) == "float":
        return Call("trunc", (real(rec, "div", left, right),))
    magnitude = divide(rec, "floordiv", numeric(rec, "abs", left), _magnitude(rec, right))
    signs = numeric(rec, "mul", numeric(rec, "sign", left), _sign(rec, right))
    return Call("mul", (signs, magnitude))


def truncated_remainder(rec: Recorder, left: Operand, right: Operand) -> Expr:
    """The remainder with the sign of the dividend, as in C: ``torch.fmod``."""
    if common_kind(left, right) == "float":
        quotient = truncated_division(rec, left, right)
        return numeric(rec, "sub", left, numeric(rec, "mul", quotient, right))
    rest = divide(rec, "mod", numeric(rec, "abs", left), _magnitude(rec, right))
    return Call("mul", (numeric(rec, "sign", left), rest))


def _magnitude(rec: Recorder, value: Operand) -> Operand:
    return abs(value) if isinstance(value, int) else numeric(rec, "abs", value)


def _sign(rec: Recorder, value: Operand) -> Operand:
    return (value > 0) - (value < 0) if isinstance(value, int) else numeric(rec, "sign", value)
