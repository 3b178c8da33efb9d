"""Names of the values of a loop nest in Triton: shared by the printers of forward, backward and planning kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from attncompiler.backends.gpu_expr import NONE, Axes, ExprPrinter, Lane, Named, Text
from attncompiler.backends.magnitudes import INT32_MAX, INT_BOUNDS, POSITION_LIMIT, bound
from attncompiler.backends.names import identifier, tensor_name
from attncompiler.backends.triton_expr import TritonPrinter
from attncompiler.ir.expr import (
    Call,
    Dot,
    Expr,
    Index,
    Load,
    Local,
    OldStat,
    OutGrad,
    Param,
    Score,
    Size,
    Stat,
    Value,
    WeightGrad,
    kind_of,
    substitute,
    walk,
)
from attncompiler.ir.kernel import Let, extent
from attncompiler.ir.program import ParamDecl, TensorDecl
from attncompiler.ir.signs import nonnegative
from attncompiler.ir.tile_runs import TileRuns
from attncompiler.ir.tiles import CORNERS

ROW: Axes = frozenset("q")
KEY: Axes = frozenset("k")
FEATURE: Axes = frozenset("d")
_SIZES = {"D": "HEAD_DIM", "Dv": "VALUE_DIM"}
_CORNERS = frozenset({"q_lo", "q_hi", "k_lo", "k_hi", "h_lo", "h_hi"})


_NEAR = "_near"
_ONE_QUERY: dict[Expr, Expr] = {end: Index("q") for end in CORNERS["q"]}


@dataclass(frozen=True, slots=True)
class ScanText:
    """The mask alone, with the values of rows and keys that it reads; ``passed`` are those of a block."""

    rows: list[Named]
    keys: list[Named]
    lets: list[Named]
    mask: str
    passed: list[str]


@dataclass(frozen=True, slots=True)
class TensorArgument:
    """A captured tensor among the arguments: a pointer, then a stride and an extent an axis."""

    name: str
    rank: int


@dataclass(frozen=True, slots=True)
class SpanText:
    """Positions ``lo`` to ``end`` (excluded) where ``when`` holds; the names of its first tile and the one behind."""

    name: str
    when: str
    lo: str
    end: str


@dataclass(frozen=True, slots=True)
class RunsText:
    """Spans by which a walk finds runs of full and of partial tiles; ``rows`` are those of single queries."""

    allowed: list[SpanText]
    forbidden: list[SpanText]
    rows: list[SpanText]

    @property
    def names(self) -> list[str]:
        """What a block computes once: the first tile of each span and the one behind it."""
        return [
            f"{s.name}_{end}" for s in (*self.allowed, *self.forbidden) for end in ("lo", "end")
        ]


class LoopPrinter:
    """Prints expressions for the loop they stand in; one printer a kernel.

    ``dtypes`` are the types of captured tensors, ``order`` the axes of a tile, down first.
    """

    printer_type: ClassVar[type[ExprPrinter]] = TritonPrinter
    # Whether the compiler leaves it to us to find the nearest number of 32 bits outside of a loop.
    narrows: ClassVar[bool] = True

    def __init__(
        self,
        tensors: Sequence[TensorDecl],
        dtypes: Sequence[str],
        order: tuple[str, str] = ("q", "k"),
    ) -> None:
        self.order = order
        self.dtypes = {t.name: dtype for t, dtype in zip(tensors, dtypes, strict=True)}
        self.bounds = {n: INT_BOUNDS[d] for n, d in self.dtypes.items() if d in INT_BOUNDS}
        self.bounds["q_start"] = POSITION_LIMIT
        for t in tensors:
            self.bounds |= {extent(t.name, axis): INT32_MAX for axis in range(len(t.axes))}
        self.locals: dict[Expr, Text] = {}
        self.counts: dict[Expr, Expr] = {}
        self.near: dict[Expr, str] = {}
        # Of the pass that is being printed.
        self.nonpositive: frozenset[Expr] = frozenset()

    def printer(self) -> ExprPrinter:
        """A printer without names of its own."""
        made: ExprPrinter

        def leaf(expr: Expr) -> Text:
            return self._leaf(made, expr)

        made = self.printer_type(
            leaf, self.bounds, self.order, self.counts, self.nonpositive, self.near
        )
        return made

    def define(self, lets: Iterable[Let], *, near: bool = False) -> list[Named]:
        """Definitions of locals; what they are is known to everything printed later.

        ``near``: those of 64 bits get a second name for the nearest number of 32, so that a loop that compares with
        them need not find it; ``settled`` drops those that are not read.
        """
        found, printer = [], self.printer()
        for let in lets:
            text = printer(let.expr)
            made, read = self.made(let.local.name, text)
            found.append(made)
            self.locals[let.local] = Text(read, text.lane, text.axes)
            if near and self.narrows and text.lane == "w":
                self.near[let.local] = f"{let.local.name}{_NEAR}"
                found.append(self._near(let.local))
            if kind_of(let.local) == "int":
                self.bounds[let.local.name] = bound(let.expr, self.bounds)
                if nonnegative(substitute(let.expr, self.counts)):
                    self.counts[let.local] = Index("q")
        return found

    def made(self, name: str, text: Text) -> tuple[Named, str]:
        """The definition of a local, and how it is read."""
        return Named(name, text.code), name

    def again(self, lets: Iterable[Let]) -> list[Named]:
        """Definitions that were made before, for another function."""
        found = []
        for x in lets:
            found.append(Named(x.local.name, self.printer()(x.expr).code))
            if x.local in self.near:
                found.append(self._near(x.local))
        return found

    def _near(self, local: Local) -> Named:
        return Named(self.near[local], f"saturate({local.name})")

    def scalar(self, expr: Expr) -> str:
        """An expression of the outer loops."""
        return self.printer()(expr).code

    def row(self, expr: Expr) -> str:
        """An expression as a vector along the rows of a block."""
        return self.spread(self.printer()(expr), ROW)

    def spread(self, text: Text, axes: Axes) -> str:
        """A value with all of ``axes``: a number or a vector is repeated."""
        if text.axes == axes:
            return text.code
        sizes = {"q": "BLOCK_M", "k": "BLOCK_N", "d": "VALUE_WIDTH"}
        sides = [sizes[a] for a in (*self.order, "d") if a in axes]
        shape = f"[{', '.join(sides)}]"
        if text.literal:
            return f"tl.full({shape}, {text.code}, tl.float32)"
        code = text.code
        if len(axes) == 2 and text.axes:
            first = next(a for a in (*self.order, "d") if a in axes)
            code += "[:, None]" if text.axes == frozenset(first) else "[None, :]"
        return f"tl.broadcast_to({code}, {shape})"

    # -- leaves ------------------------------------------------------------------------------------------------

    def _leaf(self, printer: ExprPrinter, expr: Expr) -> Text:
        match expr:
            case Local():
                return self.locals[expr]
            case Param("q_start"):
                return Text("q_start", "i")
            case Param(name) if name in _CORNERS:
                return Text(name, "i")
            case Param(name) if "." in name:
                tensor, part = name.rsplit(".", 1)
                lane: Lane = "i" if part.startswith("extent") else "o"
                return Text(f"{tensor_name(tensor)}_{part}", lane)
            case Param(name, kind):
                lanes: dict[str, Lane] = {"float": "f", "int": "w", "bool": "m"}
                return Text(f"p_{identifier(name)}", lanes[kind])
            case Size(name):
                return Text(_SIZES.get(name, name), "i", literal=name in _SIZES)
            case Index(axis):
                return Text(f"i_{axis}", "i", frozenset(axis) if axis in "qkd" else NONE)
            case Dot():
                return Text("(raw * unit)", "f", ROW | KEY)
            case Score():
                return Text("score", "f", ROW | KEY)
            case WeightGrad():
                return Text("weight_grad", "f", ROW | KEY)
            case Stat(name):
                return Text(f"s_{identifier(name)}", "f", ROW)
            case OldStat(name):
                return Text(f"old_{identifier(name)}", "f", ROW)
            case Value():
                return Text("value", "f", ROW | FEATURE)
            case OutGrad():
                return Text("out_grad", "f", ROW | FEATURE)
            case Load(tensor, (offset,), kind):
                at = printer(offset)
                code = f"tl.load({tensor_name(tensor)} + {at.code})"
                match kind:
                    case "float":
                        return Text(f"{code}.to(tl.float32)", "f", at.axes)
                    case "bool":
                        return Text(f"({code} != 0)", "m", at.axes)
                    case "int":
                        narrow = self.dtypes[tensor] in INT_BOUNDS
                        code += ".to(tl.int32)" if narrow and self.dtypes[tensor] != "int32" else ""
                        return Text(code, "i" if narrow else "w", at.axes)
            case _:
                pass
        raise KeyError(expr)

    # -- arguments ---------------------------------------------------------------------------------------------

    def tensors(self, tensors: Iterable[TensorDecl]) -> list[TensorArgument]:
        """Captured tensors among the arguments."""
        return [TensorArgument(tensor_name(t.name), len(t.axes)) for t in tensors]

    def params(self, params: Iterable[ParamDecl]) -> list[tuple[str, str]]:
        """Kinds and names of run-time scalars."""
        return [(p.kind, f"p_{identifier(p.name)}") for p in params]

    def arguments(self, params: Iterable[ParamDecl], tensors: Iterable[TensorDecl]) -> list[str]:
        """The names of all arguments that formulas read."""
        names = [name for _, name in self.params(params)]
        for t in self.tensors(tensors):
            names.append(t.name)
            for axis in range(t.rank):
                names += [f"{t.name}_stride{axis}", f"{t.name}_extent{axis}"]
        return names

    def runs(self, runs: TileRuns) -> RunsText:
        """The spans of a walk."""

        def text(name: str, when: Expr, lo: Expr, end: Expr) -> SpanText:
            return SpanText(name, *(self.scalar(e) for e in (when, lo, end)))

        return RunsText(
            [text(f"allowed{i}", *s.formulas()) for i, s in enumerate(runs.allowed)],
            [text(f"forbidden{i}", *s.formulas()) for i, s in enumerate(runs.forbidden)],
            [
                text(f"row{i}", *(substitute(e, _ONE_QUERY) for e in s.formulas()))
                for i, s in enumerate(runs.allowed)
            ],
        )

    def scan(
        self, mask: Expr, rows: list[Named], keys: list[Named], outer: Iterable[str]
    ) -> ScanText:
        """The mask by itself; ``rows`` and ``keys`` are the values that there are, ``outer`` the names of a block."""
        printer = self.printer()
        lets = printer.define([mask], "m")
        text = printer.tile(printer(mask))
        codes = [text, *(n.code for n in lets)]
        read = needed(keys, codes)
        codes += [n.code for n in read]
        return ScanText(needed(rows, codes), read, lets, text, reads(outer, codes))


def bounded(expr: Expr) -> bool:
    """Whether a value is at most 1 in size by its form: a probability, an exponential of a maximum's distance."""
    match expr:
        case Call("sigmoid" | "tanh" | "sign" | "erf"):
            return True
        case Call("mul", (x, y)):
            return bounded(x) and bounded(y)
        case _:
            return False


def needed(lets: list[Named], codes: Iterable[str]) -> list[Named]:
    """The definitions that texts read, directly or through others."""
    found: list[Named] = []
    texts = list(codes)
    for let in reversed(lets):
        if reads([let.name], texts):
            found.append(let)
            texts.append(let.code)
    return found[::-1]


def settled(
    rows: list[Named], keys: list[Named], codes: Iterable[str]
) -> tuple[list[Named], list[Named]]:
    """Definitions of rows and keys, of second names only those that texts or other definitions read."""
    lets = (*rows, *keys)
    read = set(reads([n.name for n in lets], [*codes, *(n.code for n in lets)]))

    def kept(found: list[Named]) -> list[Named]:
        return [n for n in found if n.name in read or not n.name.endswith(_NEAR)]

    return kept(rows), kept(keys)


def reads(names: Iterable[str], codes: Iterable[str]) -> list[str]:
    """The names that texts mention, in order."""
    import re

    words = {w for code in codes for w in re.findall(r"\b[A-Za-z_]\w*\b", code)}
    return [n for n in names if n in words]


__all__ = [
    "FEATURE",
    "KEY",
    "ROW",
    "LoopPrinter",
    "RunsText",
    "SpanText",
    "TensorArgument",
    "bounded",
    "reads",
    "settled",
    "walk",
]
