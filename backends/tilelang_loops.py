"""Names of the values of a loop nest in TileLang, where formulas are printed for one element of a loop.

A value of rows lies in a fragment and is read as ``x[i]``; a value of keys or of a pair is computed where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from attncompiler.backends.gpu_expr import Axes, ExprPrinter, Lane, Named, Text
from attncompiler.backends.magnitudes import INT_BOUNDS
from attncompiler.backends.names import identifier, tensor_name
from attncompiler.backends.tilelang_expr import TilelangPrinter
from attncompiler.backends.triton_loops import (
    FEATURE,
    KEY,
    ROW,
    LoopPrinter,
    RunsText,
    ScanText,
    needed,
    reads,
)
from attncompiler.ir.expr import (
    Dot,
    Expr,
    Load,
    Local,
    OldStat,
    OutGrad,
    Score,
    Stat,
    Value,
    WeightGrad,
)

# What a lane is stored as.
STORED: dict[Lane, str] = {"f": "float32", "i": "int32", "w": "int64", "o": "int64", "m": "int32"}
IDENTITIES = {
    "sum": "T.float32(0.0)",
    "max": '-T.infinity("float32")',
    "min": 'T.infinity("float32")',
}
# How loops count: the index of an axis, and what a position is made of.
COUNTERS = {"q": "i", "k": "j", "d": "d"}


@dataclass(frozen=True, slots=True)
class Stored(Named):
    """``name[i] = code``: a value of every row, in a fragment of ``dtype``; with ``dtype`` empty a scalar."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop over the elements of a tile, or over rows: definitions of one element, then what is stored for it.

    ``twins`` are fragments that the loop reads in shared memory, as ``at_x``: it has another layout than they.
    """

    axes: str
    lets: list[Named]
    stores: list[tuple[str, str]]
    twins: tuple[str, ...] = ()

    @property
    def header(self) -> str:
        """``for ... in parallel(...):``."""
        if self.axes == "d":
            return "for d in T.serial(VALUE_DIM):"
        sides = {"q": "BLOCK_M", "k": "BLOCK_N", "d": "VALUE_WIDTH"}
        counters = ", ".join(COUNTERS[a] for a in self.axes)
        return f"for {counters} in parallel({', '.join(sides[a] for a in self.axes)}):"


@dataclass(frozen=True, slots=True)
class SeenLoops:
    """How rows with an allowed key are found: by the spans of single queries, or in the partial tiles of a list."""

    by_row: Loop | None
    in_tile: Loop


class TilelangLoops(LoopPrinter):
    """Leaves and definitions of TileLang kernels; comes before a Triton printer among a class's bases."""

    printer_type: ClassVar[type[ExprPrinter]] = TilelangPrinter
    narrows: ClassVar[bool] = False
    # Whether scores are the products themselves.
    _plain: bool

    def allocate(self) -> None:
        """Forget which fragments and buffers of pairs a kernel needs; the loops that are made next say so."""
        self.fragments: dict[str, Stored] = {}
        self.pairs: dict[str, None] = {}

    def fragment(self, name: str, dtype: str = "float32") -> None:
        """A value of every row (or key, where those go down) that a kernel needs."""
        self.fragments[name] = Stored(name, "", dtype)

    def keep(self, lets: Iterable[Named]) -> list[Stored]:
        """Definitions of rows and of scalars; the rows get fragments."""
        found = []
        for x in lets:
            assert isinstance(x, Stored), x
            found.append(x)
            if x.dtype:
                self.fragment(x.name, x.dtype)
        return found

    def filling(self, lets: Iterable[Stored]) -> Loop | None:
        """The loop over rows (keys) that fills fragments in order; None without work."""
        at = COUNTERS[self.order[0]]
        stores = [(f"{x.name}[{at}]", x.code) for x in lets if x.dtype]
        return self.loop(self.order[0], stores) if stores else None

    def seen(self, scan: ScanText | None, runs: RunsText | None) -> SeenLoops | None:
        """How the rows of a block that have a key are found; None where all have."""
        if scan is None:
            return None
        one, zero = "T.float32(1.0)", "T.float32(0.0)"
        self.pairs["terms0"] = None
        code = f"choose({scan.mask} & (first + j < N), {one}, {zero})"
        in_tile = self.loop("qk", [("terms0[i, j]", code)], [*scan.keys, *scan.lets])
        by_row = None
        if runs is not None:
            some = " | ".join(
                f"({s.when} & (T.max({s.lo}, 0) < T.min({s.end}, N)))" for s in runs.rows
            )
            by_row = self.loop("q", [("seen[i]", f"choose({some}, {one}, {zero})")])
        return SeenLoops(by_row, in_tile)

    def element(self, axes: Axes) -> str:
        """The subscript of a value with these axes."""
        order = [*self.order, "d"]
        return ", ".join(COUNTERS[a] for a in order if a in axes)

    def _leaf(self, printer: ExprPrinter, expr: Expr) -> Text:
        if isinstance(expr, Score) and self._plain:
            expr = Dot()
        match expr:
            case Local():
                return self.locals[expr]
            case Dot():
                return Text(f"(raw[{self.element(ROW | KEY)}] * unit)", "f", ROW | KEY)
            case Score():
                return Text(f"score[{self.element(ROW | KEY)}]", "f", ROW | KEY)
            case WeightGrad():
                return Text(f"weight_grad[{self.element(ROW | KEY)}]", "f", ROW | KEY)
            case Stat(name):
                return Text(f"s_{identifier(name)}[i]", "f", ROW)
            case OldStat(name):
                return Text(f"old_{identifier(name)}[i]", "f", ROW)
            case Value():
                return Text("value[i, d]", "f", ROW | FEATURE)
            case OutGrad():
                return Text("out_grad[i, d]", "f", ROW | FEATURE)
            case Load(tensor, (offset,), kind):
                at = printer(offset)
                code = f"{tensor_name(tensor)}[{at.code}]"
                match kind:
                    case "float":
                        return Text(f'T.Cast("float32", {code})', "f", at.axes)
                    case "bool":
                        return Text(f"({code} != 0)", "m", at.axes)
                    case "int":
                        dtype = self.dtypes[tensor]
                        narrow = dtype in INT_BOUNDS
                        if dtype not in ("int32", "int64"):
                            code = f'T.Cast("{"int32" if narrow else "int64"}", {code})'
                        return Text(code, "i" if narrow else "w", at.axes)
            case _:
                return super()._leaf(printer, expr)

    def made(self, name: str, text: Text) -> tuple[Named, str]:
        """Values of rows (of keys, where those go down) are stored, others are names in the loop that reads them."""
        first = self.order[0]
        if not text.axes:
            return Stored(name, text.code, ""), name
        if text.axes != frozenset(first):
            return Named(name, text.code), name
        at = f"{name}[{COUNTERS[first]}]"
        if text.lane == "m":
            return Stored(name, f'T.Cast("int32", {text.code})', STORED["m"]), f"({at} != 0)"
        return Stored(name, text.code, STORED[text.lane]), at

    def spread(self, text: Text, axes: Axes) -> str:
        """A value of one element is what it is."""
        return text.code

    def loop(
        self, axes: str, stores: Sequence[tuple[str, str]], lets: Sequence[Named] = ()
    ) -> Loop:
        """A loop with the definitions that its stores read, positions included."""
        codes = [code for _, code in stores]
        used = needed([x for x in lets if not isinstance(x, Stored)], codes)
        codes += [n.code for n in used]
        query, key = ("first_row", "first") if self.order[0] == "q" else ("first", "first_key")
        names = {
            "q": Named("i_q", f"q_start + T.min({query} + i, M - 1)"),
            "k": Named("i_k", f"T.min({key} + j, N - 1)"),
            "d": Named("i_d", "d"),
        }
        positions = [names[a] for a in axes if reads([names[a].name], codes)]
        return Loop(axes, [*positions, *used], list(stores))
