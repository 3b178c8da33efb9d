"""Prints scalar expressions as Triton: a value is a number, a vector along one axis, or a tile.

A value along one axis is a vector; where values of two axes meet, the first axis goes down and the second across.
"""

from __future__ import annotations

from attncompiler.backends.gpu_expr import NONE as NONE
from attncompiler.backends.gpu_expr import Axes as Axes
from attncompiler.backends.gpu_expr import ExprPrinter
from attncompiler.backends.gpu_expr import Lane as Lane
from attncompiler.backends.gpu_expr import Named as Named
from attncompiler.backends.gpu_expr import Text as Text

FLOAT_FUNCTIONS = {
    "div": "divide", "floordiv": "floor_divide", "mod": "modulo", "pow": "power", "sign": "sign",
    "min": "minimum", "max": "maximum", "abs": "tl.abs",
    "exp": "exponential", "exp2": "exponential2", "expm1": "exponential_minus_one",
    "log": "logarithm", "log2": "logarithm2", "log1p": "logarithm_one_plus",
    "sqrt": "square_root", "rsqrt": "reciprocal_square_root", "tanh": "hyperbolic_tangent",
    "sigmoid": "sigmoid", "erf": "error_function", "sin": "sine", "cos": "cosine",
    "floor": "tl.floor", "ceil": "tl.ceil", "trunc": "truncate", "round": "round_half_even",
}  # fmt: skip
INT_FUNCTIONS = {
    "floordiv": "floor_divide_int", "mod": "modulo_int", "sign": "sign_int", "bit_length": "bit_length",
    "min": "tl.minimum", "max": "tl.maximum", "abs": "tl.abs",
}  # fmt: skip


def literal(value: bool | int | float) -> str:
    """A number as Python writes it."""
    if isinstance(value, float) and value != value:
        return 'float("nan")'
    if value in (float("inf"), float("-inf")):
        return f'float("{value}")'
    return repr(value)


class TritonPrinter(ExprPrinter):
    """Triton's spelling."""

    float_functions = FLOAT_FUNCTIONS
    int_functions = INT_FUNCTIONS
    fast_exp2 = "tl.exp2"

    def literal(self, value: bool | int | float) -> str:
        """A number as Python writes it."""
        return literal(value)

    def expanded(self, text: Text, axes: Axes) -> str:
        """A value as it meets values of ``axes``."""
        if len(axes) < 2 or len(text.axes) != 1:
            return text.code
        (axis,) = text.axes
        return f"{text.code}[{':, None' if axis == self.order[0] else 'None, :'}]"

    def chosen(self, condition: str, yes: str, no: str) -> str:
        """One of two values."""
        return f"tl.where({condition}, {yes}, {no})"

    def cast(self, text: Text, dtype: str) -> str:
        """A value in another type; an argument that is always 1 is no tensor, which only ``tl.cast`` takes."""
        return f"{text.code}.to(tl.{dtype})" if text.axes else f"tl.cast({text.code}, tl.{dtype})"

    def negated(self, condition: str) -> str:
        """Whether a truth value is false."""
        return f"({condition} == 0)"

    def quotient(self, op: str, x: str, y: str) -> str:
        """A "floordiv" or "mod" of what is not negative."""
        return f"({x} {'//' if op == 'floordiv' else '%'} {y})"
