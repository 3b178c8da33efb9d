"""Prints scalar expressions as TileLang: a value belongs to one element of a loop, so nothing is ever expanded."""

from __future__ import annotations

from collections.abc import Iterable

from attncompiler.backends.gpu_expr import Axes, ExprPrinter, Lane, Named, Text
from attncompiler.ir.expr import Call, Expr

FLOAT_FUNCTIONS = {
    "div": "divide", "floordiv": "floor_divide", "mod": "modulo", "pow": "power", "sign": "sign",
    "min": "minimum", "max": "maximum", "abs": "absolute",
    "exp": "exponential", "exp2": "exponential2", "expm1": "exponential_minus_one",
    "log": "logarithm", "log2": "logarithm2", "log1p": "logarithm_one_plus",
    "sqrt": "square_root", "rsqrt": "reciprocal_square_root", "tanh": "hyperbolic_tangent",
    "sigmoid": "sigmoid", "erf": "error_function", "sin": "sine", "cos": "cosine",
    "floor": "floor", "ceil": "ceiling", "trunc": "truncate", "round": "round_half_even",
}  # fmt: skip
INT_FUNCTIONS = {
    "floordiv": "floor_divide_int", "mod": "modulo_int", "sign": "sign_int", "bit_length": "bit_length",
    "min": "T.min", "max": "T.max", "abs": "absolute_int",
}  # fmt: skip
# TileLang's simplifier takes floats for the numbers of a field: it knows x - x, (x + y) - y, 0 * x, x == x and what is
# not less. Of these it sees other operators that mean the same and that it leaves as they are.
_UNSEEN = {"eq": "equal", "ne": "not_equal"}
_ZERO = "T.float32(0.0)"
INFINITY = 'T.infinity("float32")'


class TilelangPrinter(ExprPrinter):
    """TileLang's spelling."""

    float_functions = FLOAT_FUNCTIONS
    int_functions = INT_FUNCTIONS
    fast_exp2 = "exponential2"

    def define(self, roots: Iterable[Expr], prefix: str, later: Iterable[Expr] = ()) -> list[Named]:
        """As for all languages, by names that no local has: all of a kernel's loops stand in one function."""
        return super().define(roots, f"{prefix}_", later)

    def literal(self, value: bool | int | float) -> str:
        """A number; floats carry their type, so that two of them are no Python numbers."""
        if isinstance(value, bool):
            return f"T.bool({value})"
        if isinstance(value, int):
            return f"T.int64({value})" if abs(value) > 2**31 - 1 else f"T.int32({value})"
        if value != value:
            return 'T.float32(float("nan"))'
        if value in (float("inf"), float("-inf")):
            return INFINITY if value > 0 else f"-{INFINITY}"
        return f"T.float32({value!r})"

    def expanded(self, text: Text, axes: Axes) -> str:
        """A value as it meets values of ``axes``."""
        return text.code

    def chosen(self, condition: str, yes: str, no: str) -> str:
        """One of two values, both of which are computed."""
        return f"choose({condition}, {yes}, {no})"

    def cast(self, text: Text, dtype: str) -> str:
        """A value in another type."""
        return f'T.Cast("{dtype}", {text.code})'

    def negated(self, condition: str) -> str:
        """Whether a truth value is false."""
        return f"negation({condition})"

    def infix(self, expr: Call, x: str, y: str, lane: Lane) -> str:
        """An operator between two numbers of a lane, whose texts are x and y."""
        if lane == "f":
            if expr.op in _UNSEEN:
                return f"{_UNSEEN[expr.op]}({x}, {y})"
            if expr.op == "sub" and _cancels(*expr.args):
                return f"({x} + (-{y}))"
            if expr.op == "mul":
                x, y = ("zero()" if z == _ZERO else z for z in (x, y))
        return super().infix(expr, x, y, lane)

    def quotient(self, op: str, x: str, y: str) -> str:
        """A "floordiv" or "mod" of what is not negative."""
        return f"T.{'truncdiv' if op == 'floordiv' else 'truncmod'}({x}, {y})"


def _cancels(x: Expr, y: Expr) -> bool:
    """Whether one term of a difference is the other, or a part of it."""
    sums = [z.args for z in (x, y) if isinstance(z, Call) and z.op == "add"]
    return x is y or any(z in args for args in sums for z in (x, y))
