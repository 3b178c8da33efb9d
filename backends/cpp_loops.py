"""Names and types of the values of a loop nest in C++: shared by the printers of forward and backward kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attncompiler.backends.cpp_context import (
    CPP_TYPES,
    REAL_BYTES,
    RangesText,
    SpanText,
    Specialization,
    TensorText,
)
from attncompiler.backends.cpp_expr import Definition, LanePrinter, ScalarPrinter, Text
from attncompiler.backends.magnitudes import INT32_MAX, INT_BOUNDS, POSITION_LIMIT, bound
from attncompiler.backends.names import identifier, tensor_name
from attncompiler.ir.expr import (
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
    walk,
)
from attncompiler.ir.kernel import KeyRanges, Let
from attncompiler.ir.program import ParamDecl, TensorDecl

SIZES = {"D": "head_dim", "Dv": "value_dim"}
CORNERS = frozenset({"q_lo", "q_hi", "k_lo", "k_hi", "h_lo", "h_hi"})
SPLATS = {"f": "splat", "i": "splat_int", "w": "splat_wide", "m": "splat_mask"}
LOADS = {"f": "real", "i": "int", "w": "wide", "m": "int"}
LANE_TYPES = {"f": "vreal", "i": "vint", "w": "vwide", "m": "vint"}


class LoopPrinter:
    """Prints expressions for the loop they stand in; one printer a kernel and specialization."""

    def __init__(self, spec: Specialization, tensors: tuple[TensorDecl, ...]) -> None:
        self.spec = spec
        self.narrow = REAL_BYTES[spec.dtype] == 4
        self.real = "float" if self.narrow else "double"
        self.bounds: dict[str, int] = {}
        for decl, dtype in zip(tensors, spec.tensors, strict=True):
            if dtype in INT_BOUNDS:
                self.bounds[decl.name] = INT_BOUNDS[dtype]
        self.bounds["q_start"] = POSITION_LIMIT
        self.scalar = ScalarPrinter(self.scalar_leaf)

    def ranges(self, ranges: KeyRanges | None) -> RangesText | None:
        """The ranges of keys of a box, computed from its first and last query."""
        if ranges is None:
            return None
        texts = []
        for span in ranges.spans:
            holes = f"{span.step} > TILE" if span.step > 1 else "false" if span.solid else "true"
            when, lo, end = map(self.scalar, span.formulas())
            texts.append(SpanText(when, lo, end, holes))
        return RangesText(self.scalar(ranges.small), texts)

    # -- names -------------------------------------------------------------------------------------------------

    def scalar_leaf(self, expr: Expr) -> str:
        """Leaves of the outer loops: arguments, indices, locals and final statistics."""
        match expr:
            case Param("q_start"):
                return "a.q_start"
            case Param(name) if "." in name:
                tensor, part = name.rsplit(".", 1)
                return f"a.{tensor_name(tensor)}_{part}"
            case Param(name) if name in CORNERS:
                return name
            case Param(name, kind):
                text = f"a.p_{identifier(name)}"
                return {"float": f"real({text})", "int": text, "bool": f"({text} != 0)"}[kind]
            case Size(name):
                return SIZES.get(name, f"a.{name}")
            case Index(axis):
                return f"i_{axis}"
            case Local(name, _, axes):
                return f"key.{name}[j]" if axes == "bk" else f"u.{name}" if not axes else name
            case Stat(name):
                return f"s_{identifier(name)}"
            case Value():
                return "value"
            case OutGrad():
                return "out_grad"
            case Load(tensor, (offset,), kind):
                element = f"a.{tensor_name(tensor)}[{self.scalar(offset)}]"
                return {
                    "float": f"real(to_float({element}))",
                    "int": f"(long long){element}",
                    "bool": f"truth({element})",
                }[kind]
            case _:
                raise KeyError(expr)

    def lane_leaf(self, printer: LanePrinter, expr: Expr) -> Text:
        """Leaves of the element loop."""
        match expr:
            case Dot():
                return Text("dot", "f")
            case Score():
                return Text("score", "f")
            case WeightGrad():
                return Text("weight_grad", "f")
            case Stat(name):
                return Text(f"s_{identifier(name)}", "f")
            case OldStat(name):
                return Text(f"old_{identifier(name)}", "f")
            case Index("k"):
                return Text("splat_int(k0 + j)", "i")
            case Local(name, kind, "bhq" | ""):
                return Text(name, self._lane_of(expr, kind))
            case Param(name, kind):
                return Text(f"p_{identifier(name)}", self._lane_of(expr, kind))
            case Size(name):
                return Text(f"size_{name}", "i")
            case Load(tensor, (offset,), kind):
                wide = printer(offset)
                where = wide.code if wide.lane == "w" or not self.narrow else f"widen({wide.code})"
                how = {"float": "gather_real", "int": "gather_int", "bool": "gather_bool"}[kind]
                lane = self._load_lane(tensor, kind)
                suffix = "_wide" if lane == "w" else ""
                return Text(f"{how}{suffix}(a.{tensor_name(tensor)}, {where})", lane)
            case Local() | Index():
                kind = kind_of(expr)
                lane = self._lane_of(expr, kind)
                return Text(f"{SPLATS[lane]}({self.scalar_leaf(expr)})", lane)
            case _:
                raise KeyError(expr)

    def _lane_of(self, expr: Expr, kind: str) -> Any:
        if kind == "float":
            return "f"
        if kind == "bool":
            return "m"
        return "i" if not self.narrow or bound(expr, self.bounds) <= INT32_MAX else "w"

    def _load_lane(self, tensor: str, kind: str) -> Any:
        if kind == "float":
            return "f"
        if kind == "bool":
            return "m"
        return "i" if not self.narrow or self.bounds.get(tensor, 2**63) <= 2**31 else "w"

    def scalar_type(self, let: Let) -> str:
        """The C++ type of a value of the outer loops."""
        return {"float": "real", "int": "long long", "bool": "bool"}[let.local.kind]

    def array_type(self, let: Let) -> str:
        """Element type of a row array: what the element loop loads as lanes."""
        match let.local.kind:
            case "float":
                return "real"
            case "bool":
                return "lane_int"
            case "int":
                wide = self.narrow and bound(let.local, self.bounds) > INT32_MAX
                return "long long" if wide else "lane_int"

    # -- values -------------------------------------------------------------------------------------------------

    def learn_bounds(self, lets: Iterable[Let]) -> None:
        """Note the ranges of integer locals, which decide the width of their lanes."""
        for let in lets:
            if let.local.kind == "int":
                self.bounds[let.local.name] = bound(let.expr, self.bounds)

    def scalars(self, lets: Iterable[Let]) -> list[Definition]:
        """Definitions of values of the outer loops."""
        return [Definition(self.scalar_type(x), x.local.name, self.scalar(x.expr)) for x in lets]

    def row_arrays(self, lets: Iterable[Let]) -> list[Definition]:
        """What is stored for each row; a truth value becomes the lane of a mask, all ones where it is true."""
        return [
            Definition(d.type, d.name, f"-(lane_int){d.code}" if d.type == "bool" else d.code)
            for d in self.scalars(lets)
        ]

    def lane_printer(self, nonpositive: frozenset[Expr], weights: bool = True) -> LanePrinter:
        """A printer of the element loop's expressions; ``weights``: they may be as coarse as the element type."""
        printer: LanePrinter

        def leaf(expr: Expr) -> Text:
            return self.lane_leaf(printer, expr)

        # A weight that is rounded to 8 or 11 bits needs no more than a cubic.
        degree = 3 if weights and self.spec.dtype in ("bfloat16", "float16") else 5
        printer = LanePrinter(leaf, self.bounds, self.narrow, nonpositive, degree)
        return printer

    def values(self, printer: LanePrinter, used: list[Expr]) -> list[Definition]:
        """What a sweep reads that is constant along the keys, loaded or splatted once a row."""
        made: dict[str, Definition] = {}
        for node in walk(*used):
            match node:
                case Local(name, kind, "bhq") if not name.startswith("v"):
                    lane = self._lane_of(node, kind)
                    source = f"load_{LOADS[lane]}(this->{name} + at)"
                    made[name] = Definition(LANE_TYPES[lane], name, source)
                case Stat(name):
                    field = f"s_{identifier(name)}"
                    made[field] = Definition("vreal", field, f"load_real(this->{field} + at)")
                case OldStat(name):
                    field = f"old_{identifier(name)}"
                    made[field] = Definition("vreal", field, f"load_real(this->{field} + at)")
                case Local(name, kind, ""):
                    lane = self._lane_of(node, kind)
                    made[name] = Definition(LANE_TYPES[lane], name, f"{SPLATS[lane]}(u.{name})")
                case Param() | Size():
                    lane = self._lane_of(node, kind_of(node))
                    text = printer(node).code
                    code = f"{SPLATS[lane]}({self.scalar_leaf(node)})"
                    made[text] = Definition(LANE_TYPES[lane], text, code)
        return list(made.values())

    def params(self, params: Iterable[ParamDecl]) -> list[tuple[str, str]]:
        """Types and names of run-time scalars in the argument block."""
        return [
            ("double" if p.kind == "float" else "int64_t", f"p_{identifier(p.name)}")
            for p in params
        ]

    def tensors(self, tensors: Iterable[TensorDecl]) -> list[TensorText]:
        """Captured tensors in the argument block."""
        return [
            TensorText(tensor_name(t.name), CPP_TYPES[dtype], len(t.axes))
            for t, dtype in zip(tensors, self.spec.tensors, strict=True)
        ]

    def element_types(self) -> frozenset[str]:
        """The C++ types of everything that is read."""
        return frozenset(CPP_TYPES[t] for t in (self.spec.dtype, *self.spec.tensors))
