"""Prints scalar expressions for GPU languages: what Triton's and TileLang's printers share.

Floats are float32. An integer is ``i`` (32 bits) when its range, derived from that of positions (below 2**30, checked
at the call), provably fits; else ``w`` (64 bits). ``o`` is an offset into a tensor, as wide as the strides that the
launcher passes: 32 bits unless the tensor is longer. ``m`` is a truth value, ``f`` a float. A printed value knows the
axes it has, so that a language of vectors can expand it and one of elements can tell where it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

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


class ExprPrinter:
    """Prints expressions of one loop; ``leaf`` gives the text of leaves and locals. A language names its functions.

    ``order`` names the two axes of a tile, down first. ``bounds`` are the largest absolute values of integers by the
    name of their tensor, parameter or local; ``counts`` gives for locals that are never negative an expression of which
    that is known. ``nonpositive`` are the exponentials that are at most 1: they take the instruction as it is, to which
    results below 2**-126 are 0. ``near`` names locals of 64 bits as the nearest number of 32.
    """

    float_functions: ClassVar[Mapping[str, str]]
    int_functions: ClassVar[Mapping[str, str]]
    # The exponential of what is never positive.
    fast_exp2: ClassVar[str]

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
                return Text(self.literal(value), lane, literal=True)
            case Call(op, args):
                return self._call(expr, op, args)
            case _:
                return self.leaf(expr)

    def tile(self, text: Text) -> str:
        """A value as it meets values of both axes."""
        return self.expanded(text, frozenset(self.order))

    # -- what a language writes in its own way -----------------------------------------------------------------

    def literal(self, value: bool | int | float) -> str:
        """A number."""
        raise NotImplementedError

    def expanded(self, text: Text, axes: Axes) -> str:
        """A value as it meets values of ``axes``."""
        raise NotImplementedError

    def chosen(self, condition: str, yes: str, no: str) -> str:
        """One of two values."""
        raise NotImplementedError

    def cast(self, text: Text, dtype: str) -> str:
        """A value in another type: "float32", "int32" or "int64"."""
        raise NotImplementedError

    def negated(self, condition: str) -> str:
        """Whether a truth value is false."""
        raise NotImplementedError

    def infix(self, expr: Call, x: str, y: str, lane: Lane) -> str:
        """An operator between two numbers of a lane, whose texts are x and y."""
        return f"({x} {INFIX[expr.op]} {y})"

    def quotient(self, op: str, x: str, y: str) -> str:
        """A "floordiv" or "mod" of what is not negative."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------------------------

    def _together(self, texts: Iterable[Text]) -> tuple[list[str], Axes]:
        texts = list(texts)
        axes = NONE.union(*(t.axes for t in texts))
        return [self.expanded(t, axes) for t in texts], axes

    def _call(self, expr: Call, op: str, args: tuple[Expr, ...]) -> Text:
        texts = [self(a) for a in args]
        if op in COMPARISONS:
            comparable = self._comparable(args, texts)
            codes, axes = self._together(comparable)
            return Text(self.infix(expr, codes[0], codes[1], comparable[0].lane), "m", axes)
        if op in ("to_float", "to_int", "to_bool"):
            return self._converted(op, texts[0])
        if kind_of(expr) == "int":
            return self._integer(expr, op, texts)
        codes, axes = self._together(texts)
        match op:
            case "where" if both := self._of_two(args, texts):
                # Triton's compiler fails where one choice between numbers by both is wanted in two layouts.
                first, second = both
                code = self.chosen(first, self.chosen(second, codes[1], codes[2]), codes[2])
                return Text(code, texts[1].lane, axes)
            case "where":
                return Text(self.chosen(*codes), texts[1].lane, axes)
            case "not":
                return Text(self.negated(codes[0]), "m", axes)
            case "and" | "or":
                return Text(self.infix(expr, codes[0], codes[1], "m"), "m", axes)
            case "neg":
                return Text(f"(-{codes[0]})", "f", axes)
            case "add" | "sub" | "mul":
                return Text(self.infix(expr, codes[0], codes[1], "f"), "f", axes)
            case "exp2" if expr in self.nonpositive:
                return Text(f"{self.fast_exp2}({codes[0]})", "f", axes)
            case _:
                return Text(f"{self.float_functions[op]}({', '.join(codes)})", "f", axes)

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
            values = [self._wide(t) for t in values]
        codes, axes = self._together([*texts[: len(texts) - len(values)], *values])
        match op:
            case "where":
                code = self.chosen(*codes)
            case "neg":
                code = f"(-{codes[0]})"
            case "floordiv" | "mod" if self._counts(expr.args[0]) and _positive(expr.args[1]):
                code = self.quotient(op, codes[0], codes[1])
            case _ if op in INFIX:
                code = self.infix(expr, codes[0], codes[1], lane)
            case _:
                code = f"{self.int_functions[op]}({', '.join(codes)})"
        return Text(code, lane, axes)

    def _counts(self, expr: Expr) -> bool:
        return nonnegative(substitute(expr, self.counts))

    def _comparable(self, args: tuple[Expr, ...], texts: list[Text]) -> list[Text]:
        """Operands of one width: a wide bound that is constant along a tile's side is clamped to the narrow range."""
        lanes = {t.lane for t in texts}
        if lanes == {"m"}:
            return [Text(self.cast(t, "int32"), "i", t.axes) for t in texts]
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
            return [self._wide(t) for t in texts]
        return texts

    def _converted(self, op: str, text: Text) -> Text:
        match op, text.lane:
            case "to_float", "f":
                return text
            case "to_float", _:
                code = f"({text.code} * 1.0)" if text.literal else self.cast(text, "float32")
                return Text(code, "f", text.axes, text.literal)
            case "to_int", "f":
                return Text(self.cast(text, "int64"), "w", text.axes)
            case "to_int", "m":
                return Text(self.cast(text, "int32"), "i", text.axes)
            case "to_bool", "i" | "w" | "o" | "f":
                return Text(f"({text.code} != 0)", "m", text.axes)
            case _:
                return text

    def _wide(self, text: Text) -> Text:
        if text.lane == "w" or text.literal:
            return Text(text.code, "w", text.axes, text.literal)
        return Text(self.cast(text, "int64"), "w", text.axes)


def _positive(expr: Expr) -> bool:
    return isinstance(expr, Const) and expr.value > 0
