"""Prints scalar expressions as Triton: a value is a number, a vector along one axis, or a tile.

Floats are float32. An integer is ``i`` (32 bits) when its range, derived from that of positions (below 2**30, checked
at the call), provably fits; else ``w`` (64 bits). ``o`` is an offset into a tensor, as wide as the strides that the
launcher passes: 32 bits unless the tensor is longer. ``m`` is a truth value, ``f`` a float.

A value along one axis is a vector; where values of two axes meet, the first axis goes down and the second across.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from attncompiler.backends.magnitudes import INT32_MAX, bound
from attncompiler.backends.names import repeated
from attncompiler.ir.expr import (
    Call,
    Const,
    Expr,
    Local,
    Param,
    kind_of,
    substitute,
)
from attncompiler.ir.signs import nonnegative

Lane = Literal["f", "i", "w", "o", "m"]
Axes = frozenset[str]
NONE: Axes = frozenset()

INFIX = {
    "add": "+", "sub": "-", "mul": "*",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "bitand": "&", "bitor": "|", "bitxor": "^", "shl": "<<", "shr": ">>", "and": "&", "or": "|",
}  # fmt: skip
COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
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


@dataclass(frozen=True, slots=True)
class Text:
    """A printed value: its lane, the axes it has, and whether it is a plain Python number."""

    code: str
    lane: Lane
    axes: Axes = NONE
    literal: bool = False


@dataclass(frozen=True, slots=True)
class Named:
    """``name = code``."""

    name: str
    code: str


def literal(value: bool | int | float) -> str:
    """A number as Python writes it."""
    if isinstance(value, float) and value != value:
        return 'float("nan")'
    if value in (float("inf"), float("-inf")):
        return f'float("{value}")'
    return repr(value)


class TritonPrinter:
    """Prints expressions of one loop; ``leaf`` gives the text of leaves and locals.

    ``order`` names the two axes of a tile, down first. ``bounds`` are the largest absolute values of integers by the
    name of their tensor, parameter or local; ``counts`` gives for locals that are never negative an expression of which
    that is known. ``nonpositive`` are the exponentials that are at most 1: they take the instruction as it is, to which
    results below 2**-126 are 0. ``near`` names locals of 64 bits as the nearest number of 32.
    """

    def __init__(
        self,
        leaf: Callable[[Expr], Text],
        bounds: Mapping[str, int],
        order: tuple[str, str] = ("q", "k"),
        counts: Mapping[Expr, Expr] | None = None,
        nonpositive: frozenset[Expr] = frozenset(),
        near: Mapping[Expr, str] | None = None,
    ) -> None:
        self.leaf, self.bounds, self.order, self.counts = leaf, bounds, order, dict(counts or {})
        self.nonpositive = nonpositive
        self.near = near or {}
        self.names: dict[Expr, Text] = {}

    def define(self, roots: Iterable[Expr], prefix: str, later: Iterable[Expr] = ()) -> list[Named]:
        """Name the subexpressions that the roots use more than once; later prints refer to the names.

        A use in the expressions printed ``later`` counts as well.
        """
        made = []
        for node in repeated(list(roots), list(later)):
            if node not in self.names:
                text = self(node)
                name = f"{prefix}{len(self.names)}"
                made.append(Named(name, text.code))
                self.names[node] = Text(name, text.lane, text.axes)
        return made

    def __call__(self, expr: Expr) -> Text:
        """The text of an expression."""
        if expr in self.names:
            return self.names[expr]
        match expr:
            case Const(value):
                lane: Lane = {"float": "f", "int": "i", "bool": "m"}[kind_of(expr)]  # type: ignore[assignment]
                if lane == "i" and abs(value) > INT32_MAX:
                    lane = "w"
                return Text(literal(value), lane, literal=True)
            case Call(op, args):
                return self._call(expr, op, args)
            case _:
                return self.leaf(expr)

    def tile(self, text: Text) -> str:
        """A value as it meets values of both axes."""
        return self.expanded(text, frozenset(self.order))

    def expanded(self, text: Text, axes: Axes) -> str:
        """A value as it meets values of ``axes``."""
        if len(axes) < 2 or len(text.axes) != 1:
            return text.code
        (axis,) = text.axes
        return f"{text.code}[{':, None' if axis == self.order[0] else 'None, :'}]"

    def _together(self, texts: Iterable[Text]) -> tuple[list[str], Axes]:
        texts = list(texts)
        axes = NONE.union(*(t.axes for t in texts))
        return [self.expanded(t, axes) for t in texts], axes

    def _call(self, expr: Call, op: str, args: tuple[Expr, ...]) -> Text:
        texts = [self(a) for a in args]
        if op in COMPARISONS:
            codes, axes = self._together(self._comparable(args, texts))
            return Text(f"({codes[0]} {INFIX[op]} {codes[1]})", "m", axes)
        if op in ("to_float", "to_int", "to_bool"):
            return self._converted(op, texts[0])
        if kind_of(expr) == "int":
            return self._integer(expr, op, texts)
        codes, axes = self._together(texts)
        match op:
            case "where" if both := self._of_two(args, texts):
                # Triton's compiler fails where one choice between numbers by both is wanted in two layouts.
                first, second = both
                code = f"tl.where({first}, tl.where({second}, {codes[1]}, {codes[2]}), {codes[2]})"
                return Text(code, texts[1].lane, axes)
            case "where":
                return Text(f"tl.where({', '.join(codes)})", texts[1].lane, axes)
            case "not":
                return Text(f"({codes[0]} == 0)", "m", axes)
            case "and" | "or":
                return Text(f"({codes[0]} {INFIX[op]} {codes[1]})", "m", axes)
            case "neg":
                return Text(f"(-{codes[0]})", "f", axes)
            case "add" | "sub" | "mul":
                return Text(f"({codes[0]} {INFIX[op]} {codes[1]})", "f", axes)
            case "exp2" if expr in self.nonpositive:
                return Text(f"tl.exp2({codes[0]})", "f", axes)
            case _:
                return Text(f"{FLOAT_FUNCTIONS[op]}({', '.join(codes)})", "f", axes)

    def _of_two(self, args: tuple[Expr, ...], texts: list[Text]) -> tuple[str, str] | None:
        """The two conditions of a vector, where both of them decide between two numbers."""
        condition, *_ = args
        if len(texts[0].axes) != 1 or texts[1].axes or texts[2].axes or condition in self.names:
            return None
        match condition:
            case Call("and", (first, second)):
                one, two = self(first), self(second)
                return (one.code, two.code) if one.axes == two.axes else None
            case _:
                return None

    # -- integers ----------------------------------------------------------------------------------------------

    def _integer(self, expr: Call, op: str, texts: list[Text]) -> Text:
        values = texts[1:] if op == "where" else texts
        lane: Lane = "i"
        if any(t.lane == "o" for t in values):
            lane = "o"
        elif any(t.lane == "w" for t in values) or bound(expr, self.bounds) > INT32_MAX:
            lane = "w"
            values = [_wide(t) for t in values]
        codes, axes = self._together([*texts[: len(texts) - len(values)], *values])
        match op:
            case "where":
                code = f"tl.where({', '.join(codes)})"
            case "neg":
                code = f"(-{codes[0]})"
            case "floordiv" | "mod" if self._counts(expr.args[0]) and _positive(expr.args[1]):
                code = f"({codes[0]} {'//' if op == 'floordiv' else '%'} {codes[1]})"
            case _ if op in INFIX:
                code = f"({codes[0]} {INFIX[op]} {codes[1]})"
            case _:
                code = f"{INT_FUNCTIONS[op]}({', '.join(codes)})"
        return Text(code, lane, axes)

    def _counts(self, expr: Expr) -> bool:
        return nonnegative(substitute(expr, self.counts))

    def _comparable(self, args: tuple[Expr, ...], texts: list[Text]) -> list[Text]:
        """Operands of one width: a wide bound that is constant along a tile's side is clamped to the narrow range."""
        lanes = {t.lane for t in texts}
        if lanes == {"m"}:
            return [Text(_cast(t, "int32"), "i", t.axes) for t in texts]
        if lanes == {"i", "w"}:
            for mine, other in ((0, 1), (1, 0)):
                inside = bound(args[mine], self.bounds) < INT32_MAX
                simple = isinstance(args[other], (Local, Param))
                if texts[other].lane == "w" and inside and simple:
                    found = list(texts)
                    code = texts[other].code
                    code = self.near.get(args[other], f"saturate({code})")
                    found[other] = Text(code, "i", texts[other].axes)
                    return found
            return [_wide(t) for t in texts]
        return texts

    def _converted(self, op: str, text: Text) -> Text:
        match op, text.lane:
            case "to_float", "f":
                return text
            case "to_float", _:
                code = f"({text.code} * 1.0)" if text.literal else _cast(text, "float32")
                return Text(code, "f", text.axes, text.literal)
            case "to_int", "f":
                return Text(_cast(text, "int64"), "w", text.axes)
            case "to_int", "m":
                return Text(_cast(text, "int32"), "i", text.axes)
            case "to_bool", "i" | "w" | "o" | "f":
                return Text(f"({text.code} != 0)", "m", text.axes)
            case _:
                return text


def _positive(expr: Expr) -> bool:
    return isinstance(expr, Const) and expr.value > 0


def _wide(text: Text) -> Text:
    if text.lane == "w" or text.literal:
        return Text(text.code, "w", text.axes, text.literal)
    return Text(_cast(text, "int64"), "w", text.axes)


def _cast(text: Text, dtype: str) -> str:
    """A value in another type; an argument that is always 1 is no tensor, which only ``tl.cast`` takes."""
    return f"{text.code}.to(tl.{dtype})" if text.axes else f"tl.cast({text.code}, tl.{dtype})"
