"""Prints scalar expressions as C++: plain scalars in the outer loops, vectors of rows in the element loop.

Value types of the element loop: ``f`` lanes of ``real``, ``i`` integers as wide as ``real``, ``w`` 64-bit
integers, ``m`` masks. With 32-bit lanes an integer expression is ``i`` only when its range, derived from the
range of positions (below 2**30, checked at the call), provably fits; otherwise it is computed in ``w``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

from attncompiler.backends.magnitudes import INT32_MAX, bound
from attncompiler.backends.names import repeated
from attncompiler.ir.expr import (
    Call,
    Const,
    Expr,
    Local,
    Param,
    kind_of,
)

Lane = Literal["f", "i", "w", "m"]

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "bitand": "&", "bitor": "|", "bitxor": "^", "shl": "<<", "shr": ">>",
}  # fmt: skip
COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
FUNCTIONS = {
    *("exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "tanh", "sigmoid", "erf"),
    *("sin", "cos", "floor", "ceil", "trunc", "round", "pow", "sign", "abs", "min", "max"),
    *("floordiv", "mod", "bit_length"),
}


@dataclass(frozen=True, slots=True)
class Text:
    """A printed subexpression and the C++ type of its lanes (vectors) or its kind (scalars)."""

    code: str
    lane: Lane


@dataclass(frozen=True, slots=True)
class Definition:
    """``const type name = code;``"""

    type: str
    name: str
    code: str


def constant(value: bool | int | float) -> str:
    """A literal of the right C++ type: bool, long long or real."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value}LL" if abs(value) > INT32_MAX else str(value)
    if value != value:
        return 'real(__builtin_nan(""))'
    if value in (float("inf"), float("-inf")):
        return "-infinity" if value < 0 else "infinity"
    return f"real({value!r})"


class ScalarPrinter:
    """Prints expressions of the outer loops, where every value is one C++ scalar."""

    def __init__(self, leaf: Callable[[Expr], str]) -> None:
        self.leaf = leaf

    def __call__(self, expr: Expr) -> str:
        """The C++ text of an expression."""
        match expr:
            case Const(value):
                return constant(value)
            case Call(op, args):
                return self._call(op, args)
            case _:
                return self.leaf(expr)

    def _call(self, op: str, args: tuple[Expr, ...]) -> str:
        texts = [self(a) for a in args]
        if op == "shl":  # a literal on the left is narrower than the result
            return f"((long long){texts[0]} << {texts[1]})"
        if op in INFIX:
            return f"({texts[0]} {INFIX[op]} {texts[1]})"
        match op:
            case "and":
                return f"({texts[0]} && {texts[1]})"
            case "or":
                return f"({texts[0]} || {texts[1]})"
            case "not":
                return f"!{texts[0]}"
            case "neg":
                return f"-{texts[0]}" if not texts[0].startswith("-") else f"-({texts[0]})"
            case "where":
                return f"({texts[0]} ? {texts[1]} : {texts[2]})"
            case "to_float":
                return f"real({texts[0]})"
            case "to_int":
                return f"(long long)({texts[0]})"
            case "to_bool":
                return f"({texts[0]} != 0)"
            case _:
                suffix = "_int" if kind_of(args[0]) == "int" else ""
                return f"{_function(op)}{suffix}({', '.join(texts)})"


def _function(op: str) -> str:
    if op not in FUNCTIONS:
        raise KeyError(op)
    return {"min": "minimum", "max": "maximum", "abs": "absolute"}.get(op, op)


class LanePrinter:
    """Prints expressions of the element loop, where a value is a vector over the rows of a block.

    ``leaf`` gives the text of leaves and locals (already vectors); ``narrow`` says whether lanes are 32 bits
    wide, so that integers need a range check.
    """

    def __init__(
        self,
        leaf: Callable[[Expr], Text],
        tensor_bounds: Mapping[str, int],
        narrow: bool,
        nonpositive: frozenset[Expr] = frozenset(),
        degree: int = 5,
    ) -> None:
        self.leaf, self.tensor_bounds, self.narrow = leaf, tensor_bounds, narrow
        self.nonpositive, self.degree = nonpositive, degree
        self.names: dict[Expr, Text] = {}

    def define(
        self, roots: Iterable[Expr], prefix: str, later: Iterable[Expr] = ()
    ) -> list[Definition]:
        """Name the subexpressions that the roots use more than once; later prints refer to the names.

        A use in the expressions printed ``later`` counts as well.
        """
        made = []
        for node in repeated(list(roots), list(later)):
            if node not in self.names:
                text = self(node)
                name = f"{prefix}{len(self.names)}"
                made.append(Definition(TYPES[text.lane], name, text.code))
                self.names[node] = Text(name, text.lane)
        return made

    def __call__(self, expr: Expr) -> Text:
        """The C++ text of an expression and the type of its lanes."""
        if expr in self.names:
            return self.names[expr]
        match expr:
            case Const(value):
                match kind_of(expr):
                    case "float":
                        return Text(f"splat({constant(value)})", "f")
                    case "int":
                        lane = self.int_lane(expr)
                        return Text(f"{_SPLAT[lane]}({constant(value)})", lane)
                    case "bool":
                        return Text("all_lanes" if value else "no_lanes", "m")
                    case kind:
                        assert_never(kind)
            case Call(op, args):
                return self._call(expr, op, args)
            case _:
                return self.leaf(expr)

    def int_lane(self, expr: Expr) -> Lane:
        """The narrowest lanes that hold an integer expression."""
        if not self.narrow:
            return "i"
        return "i" if bound(expr, self.tensor_bounds) <= INT32_MAX else "w"

    def _call(self, expr: Call, op: str, args: tuple[Expr, ...]) -> Text:
        texts = [self(a) for a in args]
        if op in COMPARISONS:
            return self._compare(op, args, texts)
        kind = kind_of(expr)
        if op == "where":
            lane = texts[1].lane if kind != "int" else self._joined(texts[1:])
            yes, no = (self._cast(t, lane) for t in texts[1:])
            return Text(f"select({texts[0].code}, {yes}, {no})", lane)
        match kind:
            case "bool":
                return Text(_mask_text(op, texts), "m")
            case "float":
                if op == "to_float":
                    return Text(_as_real(texts[0]), "f")
                if expr in self.nonpositive:
                    return Text(f"{op}_nonpositive<{self.degree}>({texts[0].code})", "f")
                codes = [t.code for t in texts]
                if op in ("min", "max") and any(isinstance(a, Const) for a in args):
                    # With a constant first operand one machine instruction keeps a NaN of the second.
                    if not isinstance(args[0], Const):
                        codes.reverse()
                    return Text(f"{op}_number({', '.join(codes)})", "f")
                return Text(_arithmetic(op, codes), "f")
            case "int":
                if op == "to_int":
                    return self._as_int(texts[0])
                lane = "w" if self.int_lane(expr) == "w" else self._joined(texts)
                return Text(_arithmetic(op, [self._cast(t, lane) for t in texts]), lane)
            case _:
                assert_never(kind)

    def _compare(self, op: str, args: tuple[Expr, ...], texts: list[Text]) -> Text:
        codes = [t.code for t in texts]
        lanes = {t.lane for t in texts}
        if lanes == {"i", "w"}:
            # A wide bound that is constant along the keys is clamped to the narrow range: the comparison
            # with a value strictly inside that range stays exact and runs at full width.
            for mine, other in ((0, 1), (1, 0)):
                inside = bound(args[mine], self.tensor_bounds) < INT32_MAX
                if texts[other].lane == "w" and inside and isinstance(args[other], (Local, Param)):
                    codes[other] = f"saturate({codes[other]})"
                    return Text(f"({codes[0]} {INFIX[op]} {codes[1]})", "m")
            codes = [self._cast(t, "w") for t in texts]
            lanes = {"w"}
        text = f"({codes[0]} {INFIX[op]} {codes[1]})"
        if lanes == {"m"}:
            return Text(_compare_masks(op, *codes), "m")
        return Text(f"mask_of{text}" if lanes == {"w"} else text, "m")

    def _as_int(self, text: Text) -> Text:
        match text.lane:
            case "f":
                return Text(f"to_int({text.code})", "w" if self.narrow else "i")
            case "m":
                return Text(f"({text.code} & 1)", "i")
            case "i" | "w":
                return text
            case lane:
                assert_never(lane)

    @staticmethod
    def _joined(texts: list[Text]) -> Lane:
        return "w" if any(t.lane == "w" for t in texts) else "i"

    @staticmethod
    def _cast(text: Text, lane: Lane) -> str:
        return f"widen({text.code})" if text.lane == "i" and lane == "w" else text.code


TYPES: dict[Lane, str] = {"f": "vreal", "i": "vint", "w": "vwide", "m": "vint"}
_SPLAT: dict[Lane, str] = {"i": "splat_int", "w": "splat_wide"}


def _compare_masks(op: str, x: str, y: str) -> str:
    """False is below True; the lanes of a mask are all ones where it is true."""
    return {
        "eq": f"~({x} ^ {y})", "ne": f"({x} ^ {y})",
        "lt": f"(~{x} & {y})", "le": f"(~{x} | {y})",
        "gt": f"({x} & ~{y})", "ge": f"({x} | ~{y})",
    }[op]  # fmt: skip


def _as_real(text: Text) -> str:
    match text.lane:
        case "f":
            return text.code
        case "m":
            return f"select({text.code}, splat(1), vreal{{}})"
        case "i" | "w":
            return f"to_real({text.code})"
        case lane:
            assert_never(lane)


def _mask_text(op: str, texts: list[Text]) -> str:
    codes = [t.code for t in texts]
    match op:
        case "and":
            return f"({codes[0]} & {codes[1]})"
        case "or":
            return f"({codes[0]} | {codes[1]})"
        case "not":
            return f"~{codes[0]}"
        case "to_bool":
            return codes[0] if texts[0].lane == "m" else f"nonzero({codes[0]})"
        case _:
            raise KeyError(op)


def _arithmetic(op: str, codes: list[str]) -> str:
    if op in INFIX:
        return f"({codes[0]} {INFIX[op]} {codes[1]})"
    if op == "neg":
        return f"-({codes[0]})" if codes[0].startswith("-") else f"-{codes[0]}"
    return f"{_function(op)}({', '.join(codes)})"
