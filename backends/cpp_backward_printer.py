"""Turns a Backward into the context of the backward template: prints each expression for the loop it is computed in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from attncompiler.backends.cpp_backward_context import (
    BackwardContext,
    BackwardPassText,
    FeatureText,
    GradText,
    ScanText,
    ScatterText,
    StartText,
    TileScatterText,
)
from attncompiler.backends.cpp_context import (
    CPP_TYPES,
    IDENTITIES,
    PIECES,
    PRODUCTS,
    Specialization,
    StatText,
)
from attncompiler.backends.cpp_cut import Schedule
from attncompiler.backends.cpp_expr import Definition
from attncompiler.backends.cpp_loops import LoopPrinter
from attncompiler.backends.cpp_schedule import schedules
from attncompiler.backends.names import identifier, tensor_name
from attncompiler.ir.backward import Backward, BackwardPass, Scatter
from attncompiler.ir.expr import (
    Call,
    Dot,
    Expr,
    Local,
    OutGrad,
    Score,
    Stat,
    Value,
    WeightGrad,
    axes_of,
    walk,
)
from attncompiler.ir.gradient import Gradient
from attncompiler.ir.program import ReduceOp, TensorDecl


class BackwardPrinter(LoopPrinter):
    """Builds the template's context for one backward and specialization."""

    def __init__(
        self, backward: Backward, spec: Specialization, tuned: Schedule | None = None
    ) -> None:
        super().__init__(spec, backward.tensors)
        self.backward, self.tuned = backward, tuned

    # -- rows before the keys ------------------------------------------------------------------------------------

    def start_text(self) -> StartText:
        """The work on the value features of a row."""
        start = self.backward.start
        return StartText(
            rows=self.scalars(start.rows),
            reductions=[self._feature(r.name, r.op, r.body) for r in start.reductions],
            value_grad=self._feature("go", "sum", start.value_grad),
            elements=self._scatters(start.elements),
            epilogue=self._scatters(start.epilogue),
        )

    def _feature(self, name: str, op: ReduceOp, body: Expr) -> FeatureText:
        read = set(walk(body))
        return FeatureText(
            name=identifier(name),
            op=op,
            identity=IDENTITIES[op],
            combine=f"fold_{op}",
            body=self.scalar(body),
            reads_grad=OutGrad() in read,
            reads_value=Value() in read,
            go=self._go_of(op, body),
        )

    def _go_of(self, op: ReduceOp, body: Expr) -> str | None:
        """The first factor, where a reduction is the sum of value_grad * value."""
        match body:
            case Call("mul", (go, Value())) if op == "sum" and go is self.backward.start.value_grad:
                return self.scalar(go)
            case _:
                return None

    def _weighed(self) -> str | None:
        """The statistic <go, o>, if the only walk reads it: what a tile holds of a row's keys gives it more exactly."""
        found = [r for r in self.backward.start.reductions if self._go_of(r.op, r.body)]
        if len(self.backward.passes) != 1 or not found:
            return None
        return identifier(found[0].name)

    def _scatters(self, scatters: Iterable[Scatter]) -> list[ScatterText]:
        """Scatters of loops where every value is a scalar."""
        return [
            ScatterText(tensor_name(s.tensor), self.scalar(s.offset), self.scalar(s.value))
            for s in scatters
        ]

    # -- walks over the keys -------------------------------------------------------------------------------------

    def scan_text(self) -> ScanText | None:
        """The mask by itself, with the row and key values of the first pass."""
        first = self.backward.passes[0]
        if first.mask is None:
            return None
        printer = self.lane_printer(first.nonpositive)
        lets = printer.define([first.mask], "t")
        return ScanText(self.values(printer, [first.mask]), lets, printer(first.mask).code)

    def pass_text(self, number: int, walk_: BackwardPass) -> BackwardPassText:
        """One walk."""
        printer = self.lane_printer(walk_.nonpositive)
        last = walk_.weight is not None
        results = [e for e in (walk_.weight, walk_.dot_grad) if e is not None]
        bodies = [u.body for u in walk_.sums] + [s.value for s in walk_.key_grads]
        tiled = {s: parts for s in walk_.pair_grads if (parts := _row_and_key(s.offset))}
        bodies += [s.value for s in walk_.pair_grads]
        bodies += [s.offset for s in walk_.pair_grads if s not in tiled] + results
        read = set(walk(*bodies))
        scored = Score() in read
        heads = [e for e in (walk_.mask, walk_.score if scored else None) if e is not None]
        read |= set(walk(*heads))
        score_lets = printer.define(heads, "t", later=bodies)
        mask = None if walk_.mask is None else printer(walk_.mask).code
        score = printer(walk_.score).code if scored else None
        elements = printer.define(bodies, "t")
        return BackwardPassText(
            number=number,
            last=last,
            known=self._read_before(walk_),
            stats=[(identifier(name), self.scalar(e)) for name, e in walk_.stats],
            rows=self.row_arrays(walk_.rows),
            keys=self.scalars(walk_.keys),
            masked=walk_.mask is not None,
            needs_dot=Dot() in read,
            needs_weight_grad=WeightGrad() in read,
            values=self.values(printer, [*heads, *bodies]),
            score_lets=score_lets,
            mask=mask,
            score=score,
            elements=elements,
            sums=[
                StatText(
                    identifier(u.name),
                    u.op,
                    IDENTITIES[u.op],
                    f"fold_{u.op}",
                    printer(u.body).code,
                    None,
                )
                for u in walk_.sums
            ],
            weight=None if walk_.weight is None else printer(walk_.weight).code,
            dot_grad=None if walk_.dot_grad is None else printer(walk_.dot_grad).code,
            key_grads=[
                ScatterText(tensor_name(s.tensor), self.scalar(s.offset), printer(s.value).code)
                for s in walk_.key_grads
            ],
            pair_grads=[
                ScatterText(tensor_name(s.tensor), printer(s.offset).code, printer(s.value).code)
                for s in walk_.pair_grads
                if s not in tiled
            ],
            tile_grads=[
                TileScatterText(
                    tensor_name(s.tensor), row.name, self.scalar(key), printer(s.value).code
                )
                for s, (row, key) in tiled.items()
            ],
        )

    def _read_before(self, walk_: BackwardPass) -> list[str]:
        """Statistics that the row formulas of a walk read and that were known before it."""
        own = {name for name, _ in walk_.stats}
        formulas = [e for _, e in walk_.stats] + [let.expr for let in walk_.rows]
        return self._stats_read(formulas, own)

    @staticmethod
    def _stats_read(formulas: list[Expr], own: Iterable[str] = ()) -> list[str]:
        names = (n.name for n in walk(*formulas) if isinstance(n, Stat))
        return [identifier(name) for name in dict.fromkeys(names) if name not in set(own)]

    # -- the whole -----------------------------------------------------------------------------------------------

    def context(self, title: str, definition: str, regenerate: str) -> BackwardContext:
        """The template's context; ``definition`` is the user's source, printed at the top of the file."""
        backward, gradient = self.backward, self.backward.gradient
        self.learn_bounds((*backward.uniform, *backward.start.rows))
        for walk_ in backward.passes:
            self.learn_bounds((*walk_.rows, *walk_.keys))
        self.learn_bounds(backward.finish)
        rows = [x for p in backward.passes for x in p.rows]
        keys = [x for p in backward.passes for x in p.keys]
        passes = [self.pass_text(number, p) for number, p in enumerate(backward.passes)]
        pairs = self.spec.dtype == "bfloat16"
        grads = [
            GradText(
                tensor_name(t.name),
                "double" if sums_in_double(t) else "real",
                len(t.axes),
                t in backward.tensors,
            )
            for t in backward.grads
        ]
        by_name = {t.name: t for t in grads}
        return BackwardContext(
            title=title,
            definition=definition.rstrip().splitlines(),
            regenerate=regenerate,
            spec=self.spec,
            storage=CPP_TYPES[self.spec.dtype],
            types=self.element_types(),
            real=self.real,
            params=self.params(backward.params),
            tensors=self.tensors(backward.tensors),
            grads=grads,
            saved=[identifier(name) for name in gradient.saved],
            kept=[identifier(name) for name, _ in gradient.kept],
            kept_stats=[(identifier(name), identifier(stat)) for name, stat in gradient.kept],
            value=value_source(gradient, self.spec.dtype),
            uniform=self.scalars(backward.uniform),
            row_arrays=[Definition(self.array_type(x), x.local.name, "") for x in rows],
            key_arrays=[Definition(self.scalar_type(x), x.local.name, "") for x in keys],
            stats=self._all_stats(),
            weighed=self._weighed(),
            start=self.start_text(),
            scan=self.scan_text(),
            passes=passes,
            finish_stats=self._stats_read([x.expr for x in backward.finish]),
            finish_rows=self.scalars(backward.finish),
            row_grads=self._scatters(backward.row_grads),
            key_grads=[by_name[s.name] for p in passes for s in p.key_grads],
            tile_grads=[by_name[s.name] for p in passes for s in p.tile_grads],
            pair_grads=any(p.pair_grads for p in passes),
            live=any(p.pair_grads or p.key_grads or p.tile_grads for p in passes),
            possible=self.scalar(backward.possible),
            certain=self.scalar(backward.certain),
            planned=backward.planned,
            ranges=self.ranges(backward.ranges),
            packs_heads=backward.packs_heads,
            masked=backward.passes[0].mask is not None,
            schedules=schedules("backward", self.spec, self.tuned),
            in_place=self.spec.dtype in ("float32", "float64"),
            pairs=pairs,
            scale_late=pairs,
            pieces=PIECES[self.spec.dtype],
            products=PRODUCTS[PIECES[self.spec.dtype]],
            dot_scale=gradient.dot_scale,
        )

    def _all_stats(self) -> list[str]:
        """Every row statistic that is stored, in the order it becomes known."""
        backward, gradient = self.backward, self.backward.gradient
        names = [*gradient.saved, *(stat for _, stat in gradient.kept)]
        names += [r.name for r in backward.start.reductions]
        for walk_ in backward.passes:
            names += [name for name, _ in walk_.stats] + [u.name for u in walk_.sums]
        return [identifier(name) for name in names]


def _row_and_key(offset: Expr) -> tuple[Local, Expr] | None:
    """An offset as the sum of a value of the row and one of the key, if it is one."""
    match offset:
        case Call("add", (Local(_, _, "bhq") as row, key)) if not axes_of(key) & {"h", "q"}:
            return row, key
        case _:
            return None


def sums_in_double(tensor: TensorDecl) -> bool:
    """Whether the gradient of a tensor is added up in double precision.

    Many rows add to an element, unless the tensor has one for every pair, and is as large.
    """
    return not {"q", "k"} <= set(tensor.axes)


def value_source(gradient: Gradient, dtype: str) -> Literal["out", "real", ""]:
    """Where a backward finds the output row before the epilogue: in ``out`` itself, or in a buffer of its own.

    An output that was rounded to 16 bits does not serve: <go, o> is subtracted from numbers that are as exact as
    float32, and what is left may be multiplied by distances.
    """
    if not gradient.reads_value:
        return ""
    plain = gradient.program.output is Value() and dtype in ("float32", "float64")
    return "out" if plain else "real"
