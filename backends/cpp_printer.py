"""Turns a Kernel into the context of the C++ templates: prints each expression for the loop it is computed in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attncompiler.backends.cpp_context import (
    CPP_TYPES,
    IDENTITIES,
    INT_BOUNDS,
    REAL_BYTES,
    Context,
    FinishText,
    PassText,
    Specialization,
    StatText,
    SweepText,
    TensorText,
    WeightText,
    identifier,
    tensor_name,
)
from attncompiler.backends.cpp_expr import (
    INT32_MAX,
    POSITION_LIMIT,
    Definition,
    LanePrinter,
    ScalarPrinter,
    Text,
    bound,
)
from attncompiler.ir.expr import (
    Dot,
    Expr,
    Index,
    Load,
    Local,
    OldStat,
    Param,
    Score,
    Size,
    Stat,
    Value,
    kind_of,
    walk,
)
from attncompiler.ir.kernel import Kernel, KernelPass, Let, StatUpdate, WeightTile

SIZES = {"D": "head_dim", "Dv": "value_dim"}
CORNERS = frozenset({"q_lo", "q_hi", "k_lo", "k_hi", "h_lo", "h_hi"})
SPLATS = {"f": "splat", "i": "splat_int", "w": "splat_wide", "m": "splat_mask"}
LOADS = {"f": "real", "i": "int", "w": "wide", "m": "int"}
LANE_TYPES = {"f": "vreal", "i": "vint", "w": "vwide", "m": "vint"}


class CppPrinter:
    """Builds the template's context for one kernel and specialization."""

    def __init__(self, kernel: Kernel, spec: Specialization) -> None:
        self.kernel, self.spec = kernel, spec
        self.narrow = REAL_BYTES[spec.dtype] == 4
        self.real = "float" if self.narrow else "double"
        self.bounds: dict[str, int] = {}
        for decl, dtype in zip(kernel.tensors, spec.tensors, strict=True):
            if dtype in INT_BOUNDS:
                self.bounds[decl.name] = INT_BOUNDS[dtype]
        self.bounds["q_start"] = POSITION_LIMIT
        self.scalar = ScalarPrinter(self.scalar_leaf)

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

    # -- parts -------------------------------------------------------------------------------------------------

    def learn_bounds(self, lets: Iterable[Let]) -> None:
        """Note the ranges of integer locals, which decide the width of their lanes."""
        for let in lets:
            if let.local.kind == "int":
                self.bounds[let.local.name] = bound(let.expr, self.bounds)

    def scalars(self, lets: Iterable[Let]) -> list[Definition]:
        """Definitions of values of the outer loops."""
        return [Definition(self.scalar_type(x), x.local.name, self.scalar(x.expr)) for x in lets]

    def _row_arrays(self, lets: Iterable[Let]) -> list[Definition]:
        """What is stored for each row; a truth value becomes the lane of a mask, all ones where it is true."""
        return [
            Definition(d.type, d.name, f"-(lane_int){d.code}" if d.type == "bool" else d.code)
            for d in self.scalars(lets)
        ]

    def pass_text(self, number: int, kernel_pass: KernelPass, earlier: list[str]) -> PassText:
        """One pass; ``earlier`` names the statistics that are final in it."""
        sweeps = [self.sweep_text(kernel_pass, i) for i in range(len(kernel_pass.sweeps))]
        return PassText(
            number=number,
            rows=self._row_arrays(kernel_pass.rows),
            keys=self.scalars(kernel_pass.keys),
            final_stats=earlier,
            masked=kernel_pass.mask is not None,
            needs_scores=any(s.uses_dot for s in sweeps),
            sweeps=sweeps,
            stats=[
                (identifier(u.name), IDENTITIES[u.op])
                for sweep in kernel_pass.sweeps
                for u in sweep.stats
            ],
            accumulators=[identifier(w.accumulator) for w in kernel_pass.weights],
        )

    def sweep_text(self, kernel_pass: KernelPass, number: int) -> SweepText:
        """One sweep of a pass."""
        sweep = kernel_pass.sweeps[number]
        first, last = number == 0, number == len(kernel_pass.sweeps) - 1
        printer = self.lane_printer(kernel_pass.nonpositive)
        lanes = []
        for let in sweep.lanes:
            text = printer(let.expr)
            lanes.append(Definition(LANE_TYPES[text.lane], let.local.name, text.code))
        mask = kernel_pass.mask if first else None
        parts: list[StatUpdate | WeightTile] = [*sweep.stats, *sweep.weights]
        bodies = [x.body for x in parts]
        factors = [x.factor for x in parts if x.factor is not None]
        scored = any(isinstance(n, Score) for n in walk(*bodies))
        rest = kernel_pass.sweeps[number + 1 :]
        later = [x.body for s in rest for x in s.stats] + [x.body for s in rest for x in s.weights]
        # The untouched dot product is still in the tile; any other score is stored there for later sweeps.
        plain = kernel_pass.score is Dot()
        stores = first and not plain and any(isinstance(n, Score) for n in walk(*later))
        computes = (first or plain) and (scored or stores)
        heads = [e for e in (mask, kernel_pass.score if computes else None) if e is not None]
        score_lets = printer.define(heads, "t")
        mask_text = None if mask is None else printer(mask).code
        score = printer(kernel_pass.score).code if computes else None
        if scored and not computes:
            score = "load_real(cell)"
        elements = printer.define(bodies, "t")
        body_texts = {body: printer(body).code for body in bodies}
        # Factors are used after the walk over the keys, where the names of elements no longer exist.
        after = self.lane_printer(kernel_pass.nonpositive)
        factor_lets = after.define(factors, "f")
        used = [*heads, *bodies, *factors, *(x.expr for x in sweep.lanes)]
        return SweepText(
            first=first,
            last=last,
            values=self._values(printer, used),
            lanes=lanes,
            uses_dot=computes and any(n is Dot() for n in walk(kernel_pass.score)),
            score_lets=score_lets,
            mask=mask_text,
            score=score,
            stores_score=stores,
            elements=elements,
            factors=factor_lets,
            stats=[
                StatText(
                    identifier(u.name),
                    u.op,
                    IDENTITIES[u.op],
                    f"fold_{u.op}",
                    body_texts[u.body],
                    None if u.factor is None else after(u.factor).code,
                )
                for u in sweep.stats
            ],
            weights=[
                WeightText(
                    identifier(w.accumulator),
                    slot,
                    body_texts[w.body],
                    None if w.factor is None else after(w.factor).code,
                )
                for slot, w in enumerate(sweep.weights)
            ],
        )

    def lane_printer(self, nonpositive: frozenset[Expr]) -> LanePrinter:
        """A printer of the element loop's expressions."""
        printer: LanePrinter

        def leaf(expr: Expr) -> Text:
            return self.lane_leaf(printer, expr)

        # A weight that is rounded to 8 or 11 bits needs no more than a cubic.
        degree = 3 if self.spec.dtype in ("bfloat16", "float16") else 5
        printer = LanePrinter(leaf, self.bounds, self.narrow, nonpositive, degree)
        return printer

    def _values(self, printer: LanePrinter, used: list[Expr]) -> list[Definition]:
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

    def finish_text(self) -> FinishText:
        """The end of a row."""
        finish = self.kernel.finish
        return FinishText(
            rows=self.scalars(finish.rows),
            coefficients=[(identifier(n), self.scalar(e)) for n, e in finish.coefficients],
            kept=[(identifier(n), self.scalar(e)) for n, e in finish.kept],
            reductions=[
                (identifier(r.name), r.op, IDENTITIES[r.op], self.scalar(r.body), f"fold_{r.op}")
                for r in finish.reductions
            ],
            output=self.scalar(finish.output),
        )

    def context(self, title: str, definition: str, regenerate: str) -> Context:
        """The template's context; ``definition`` is the user's source, printed at the top of the file."""
        kernel = self.kernel
        self.learn_bounds(kernel.uniform)
        for kernel_pass in kernel.passes:
            self.learn_bounds((*kernel_pass.rows, *kernel_pass.keys))
        all_rows = [x for p in kernel.passes for x in p.rows]
        all_keys = [x for p in kernel.passes for x in p.keys]
        passes, earlier = [], list[str]()
        for number, kernel_pass in enumerate(kernel.passes):
            passes.append(self.pass_text(number, kernel_pass, list(earlier)))
            earlier += [name for name, _ in passes[-1].stats]
        return Context(
            title=title,
            definition=definition.rstrip().splitlines(),
            regenerate=regenerate,
            spec=self.spec,
            storage=CPP_TYPES[self.spec.dtype],
            types=frozenset(CPP_TYPES[t] for t in (self.spec.dtype, *self.spec.tensors)),
            real=self.real,
            params=[
                ("double" if p.kind == "float" else "int64_t", f"p_{identifier(p.name)}")
                for p in kernel.params
            ],
            tensors=[
                TensorText(tensor_name(t.name), CPP_TYPES[dtype], len(t.axes))
                for t, dtype in zip(kernel.tensors, self.spec.tensors, strict=True)
            ],
            uniform=self.scalars(kernel.uniform),
            row_arrays=[Definition(self.array_type(x), x.local.name, "") for x in all_rows],
            key_arrays=[Definition(self.scalar_type(x), x.local.name, "") for x in all_keys],
            stats=[identifier(s.name) for s in kernel.plan.stats],
            accumulators=[identifier(a.name) for a in kernel.plan.accumulators],
            passes=passes,
            finish=self.finish_text(),
            kept=[identifier(n) for n, _ in kernel.finish.kept],
            possible=self.scalar(kernel.possible),
            certain=self.scalar(kernel.certain),
            packs_heads=kernel.packs_heads,
            masked=any(p.masked for p in passes),
            tiles=max(1, *(len(p.accumulators) for p in passes)),
            in_place=self.spec.dtype in ("float32", "float64"),
            pairs=self.spec.dtype == "bfloat16",
            scale_late=self.spec.dtype == "bfloat16",
        )
