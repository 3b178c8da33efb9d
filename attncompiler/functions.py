"""The functions of the DSL: one name for symbols (traced), torch tensors (the oracle) and plain numbers (constants).

They need no torch import: torch is used only when an argument is a torch tensor. On plain numbers they follow IEEE
arithmetic (``log(0)`` is -inf, ``exp(1000)`` is inf) instead of raising as the math module does.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from attncompiler.recorder import is_torch_tensor
from attncompiler.symbol_functions import FUNCTIONS, apply
from attncompiler.symbol_tensors import TensorSymbol
from attncompiler.symbols import Symbol

# A symbol, a torch tensor or a Python number: what comes in decides what comes out, which no annotation can say.
Value: TypeAlias = Any

inf = math.inf


def _dispatch(name: str, number: Callable[..., Value], *values: Value, torch: str = "") -> Value:
    for value in values:
        if isinstance(value, (Symbol, TensorSymbol)):
            return apply(value.recorder, FUNCTIONS, name, *values)
    if not any(is_torch_tensor(v) for v in values):
        return number(*values)
    library = sys.modules["torch"]
    tensors = (v if is_torch_tensor(v) else library.tensor(v) for v in values)
    return getattr(library, torch or name)(*tensors)


def _saturating(function: Callable[[float], float]) -> Callable[[float], float]:
    def call(x: float) -> float:
        try:
            return function(x)
        except OverflowError:
            return inf

    return call


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -inf if x == 0 else math.nan


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def exp(x: Value) -> Value:
    """e to the power x."""
    return _dispatch("exp", _saturating(math.exp), x)


def exp2(x: Value) -> Value:
    """2 to the power x."""
    return _dispatch("exp2", _saturating(lambda v: 2.0**v), x)


def expm1(x: Value) -> Value:
    """exp(x) - 1, accurate near 0."""
    return _dispatch("expm1", _saturating(math.expm1), x)


def log(x: Value) -> Value:
    """Natural logarithm."""
    return _dispatch("log", _log, x)


def log2(x: Value) -> Value:
    """Logarithm to base 2."""
    return _dispatch("log2", lambda v: math.log2(v) if v > 0 else _log(v), x)


def log1p(x: Value) -> Value:
    """log(1 + x), accurate near 0."""
    return _dispatch("log1p", lambda v: math.log1p(v) if v > -1 else _log(1.0 + v), x)


def sqrt(x: Value) -> Value:
    """Square root."""
    return _dispatch("sqrt", lambda v: math.sqrt(v) if v >= 0 else math.nan, x)


def rsqrt(x: Value) -> Value:
    """1 / sqrt(x)."""
    return _dispatch("rsqrt", lambda v: v**-0.5 if v > 0 else inf if v == 0 else math.nan, x)


def tanh(x: Value) -> Value:
    """Hyperbolic tangent."""
    return _dispatch("tanh", math.tanh, x)


def sigmoid(x: Value) -> Value:
    """1 / (1 + exp(-x))."""
    return _dispatch("sigmoid", _sigmoid, x)


def erf(x: Value) -> Value:
    """The error function."""
    return _dispatch("erf", math.erf, x)


def sin(x: Value) -> Value:
    """Sine of x radians."""
    return _dispatch("sin", math.sin, x)


def cos(x: Value) -> Value:
    """Cosine of x radians."""
    return _dispatch("cos", math.cos, x)


def floor(x: Value) -> Value:
    """The largest whole number that is not above x; a float stays a float."""
    return _dispatch("floor", lambda v: v if isinstance(v, int) else float(math.floor(v)), x)


def ceil(x: Value) -> Value:
    """The smallest whole number that is not below x; a float stays a float."""
    return _dispatch("ceil", lambda v: v if isinstance(v, int) else float(math.ceil(v)), x)


def sign(x: Value) -> Value:
    """-1, 0 or 1, of the kind of x."""
    return _dispatch("sign", lambda v: type(v)((v > 0) - (v < 0)), x)


def maximum(x: Value, y: Value) -> Value:
    """The larger of two; the gradient is shared equally where they are equal."""
    return _dispatch("maximum", max, x, y)


def minimum(x: Value, y: Value) -> Value:
    """The smaller of two; the gradient is shared equally where they are equal."""
    return _dispatch("minimum", min, x, y)


def clamp(x: Value, low: Value, high: Value) -> Value:
    """X limited to [low, high]; ``high`` wins when the two cross, as in torch."""
    return minimum(maximum(x, low), high)


def where(condition: Value, yes: Value, no: Value) -> Value:
    """``yes`` where the condition holds, else ``no``."""
    return _dispatch("where", lambda c, a, b: a if c else b, condition, yes, no)


def square(x: Value) -> Value:
    """X times x."""
    return x * x


def relu(x: Value) -> Value:
    """max(x, 0)."""
    return _dispatch("relu", lambda v: max(v, 0), x)


def silu(x: Value) -> Value:
    """X * sigmoid(x)."""
    return x * sigmoid(x)


def softplus(x: Value) -> Value:
    """log(1 + exp(x)), without overflow."""
    return maximum(x, 0.0) + log1p(exp(-abs(x)))


def cdiv(x: Value, y: Value) -> Value:
    """The quotient of two integers, rounded up."""
    return (x + (y - 1)) // y


def bit_length(x: Value) -> Value:
    """Number of binary digits of an integer, as ``int.bit_length``: 0 for 0, 3 for 5."""
    if is_torch_tensor(x):
        rest, length = abs(x), x * 0
        for _ in range(63):
            length = length + (rest > 0)
            rest = rest >> 1
        return length
    return _dispatch("bit_length", int.bit_length, x)


def is_pow2(x: Value) -> Value:
    """Whether an integer is 1, 2, 4, 8 ...."""
    return (x > 0) & ((x & (x - 1)) == 0)


def to_float(x: Value) -> Value:
    """An int or bool as a float."""
    if is_torch_tensor(x):
        return x if x.is_floating_point() else x.to(sys.modules["torch"].get_default_dtype())
    return _dispatch("to_float", float, x)


def to_int(x: Value) -> Value:
    """A float rounded towards zero, or a bool as 0 or 1."""
    return x.long() if is_torch_tensor(x) else _dispatch("to_int", int, x)


def to_bool(x: Value) -> Value:
    """Whether a number is not 0."""
    return x.bool() if is_torch_tensor(x) else _dispatch("to_bool", bool, x)
