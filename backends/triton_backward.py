"""Turns a Backward into the context of the Triton backward template: prints each expression for its loop.

Two kernels share the work. The first walks over the keys of a block of queries: it finds the statistics of its rows,
the gradient of the queries and all gradients of tensors but those that are summed over queries. The second walks over
the queries of a block of keys, with the statistics that the first one left.
"""

from __future__ import annotations

from collections.abc import Sequence

from attncompiler.backends.gpu_expr import NONE, Axes, ExprPrinter, Named, Text
from attncompiler.backends.names import identifier, tensor_name
from attncompiler.backends.triton_backward_context import (
    BackwardContext,
    FeatureText,
    GradientArgument,
    ScatterText,
    SumText,
    WalkText,
)
from attncompiler.backends.triton_backward_parts import (
    Elements,
    arguments_of,
    is_stored,
    vanishes,
)
from attncompiler.backends.triton_context import IDENTITIES, ReductionText
from attncompiler.backends.triton_forward import BLOCK_NAMES, grows
from attncompiler.backends.triton_loops import (
    FEATURE,
    KEY,
    ROW,
    LoopPrinter,
    ScanText,
    needed,
    reads,
    settled,
)
from attncompiler.ir.backward import Backward, BackwardPass, Scatter
from attncompiler.ir.expr import (
    Dot,
    Expr,
    OutGrad,
    Score,
    Value,
    WeightGrad,
    walk,
)
from attncompiler.ir.passes.lower import flatten_loads
from attncompiler.ir.tile_runs import tile_runs

PAIR: Axes = ROW | KEY
# Which points of fewer axes than those of their loop there are.
_EXISTS: dict[Axes, str] = {
    NONE: "True",
    ROW: "exists",
    KEY: "(first + tl.arange(0, BLOCK_N) < N)",
    FEATURE: "(i_d < VALUE_DIM)",
}


class BackwardPrinter(LoopPrinter):
    """Builds the template's context for one backward; ``dtypes`` are those of the tensors that it reads."""

    def __init__(
        self,
        backward: Backward,
        dtypes: Sequence[str],
        order: tuple[str, str] = ("q", "k"),
    ) -> None:
        super().__init__(backward.tensors, dtypes, order)
        self.backward = backward
        self._dtypes = dtypes
        self._plain = False
        self._stored = {t.name for t in backward.grads if is_stored(backward, t.name)}

    def _leaf(self, printer: ExprPrinter, expr: Expr) -> Text:
        return super()._leaf(printer, Dot() if isinstance(expr, Score) and self._plain else expr)

    def context(self, title: str, definition: str, regenerate: str) -> BackwardContext:
        """The template's context; ``definition`` is the user's source, printed at the top of the file."""
        backward, gradient = self.backward, self.backward.gradient
        program = gradient.program
        uniform = self.define(backward.uniform)
        start = self.start_text()
        outer = [n.name for n in (*uniform, *start.rows)]
        walks = [self.walk_text(n, p, outer) for n, p in enumerate(backward.passes)]
        finish = self.define(backward.finish)
        where = "exists & seen" if walks[0].masked else "exists"
        declared = {t.name: t for t in program.tensors}
        runs, column_runs = (
            tile_runs(program.mask, "keys"),
            tile_runs(program.mask, "queries"),
        )
        columns = type(self)(backward, self._dtypes, ("k", "q"))
        columns.define(backward.uniform)
        columns.define(backward.start.rows)
        column_walk = columns.column_text(uniform)
        read = {t.name for t in backward.tensors}
        masked = walks[0].masked
        return BackwardContext(
            title=title,
            definition=definition.rstrip().splitlines(),
            regenerate=regenerate,
            params=self.params(backward.params),
            tensors=self.tensors(backward.tensors),
            grads=[
                GradientArgument(
                    tensor_name(t.name), len(t.axes), t.name in read, t.name in self._stored
                )
                for t in backward.grads
            ],
            saved=[f"s_{identifier(n)}" for n in gradient.saved],
            kept=[(f"grad_{identifier(n)}", f"s_{identifier(s)}") for n, s in gradient.kept],
            uniform=uniform,
            start=start,
            walks=walks,
            columns=column_walk,
            finish=finish,
            row_grads=[self.scatter(s, {ROW: where}) for s in backward.row_grads],
            handed=column_walk.loads,
            known=[f"s_{identifier(n)}" for n in self._known()],
            own_go=backward.start.value_grad is not OutGrad(),
            masked=masked,
            scan=self._scan(outer),
            reversed=runs is not None and masked and any(map(grows, runs.allowed)),
            runs=None
            if runs is None or not masked
            else self.runs(runs.mapped(lambda e: flatten_loads(e, declared))),
            column_runs=None
            if column_runs is None or not masked
            else self.runs(column_runs.mapped(lambda e: flatten_loads(e, declared))),
            finds_extrema=any(u.op != "sum" for p in backward.passes for u in p.sums),
            dot_scale=gradient.dot_scale,
        )

    # -- rows before the keys ----------------------------------------------------------------------------------

    def start_text(self) -> FeatureText:
        """The work on the value features of a row."""
        start = self.backward.start
        rows = self.define(start.rows)
        wide = ROW | FEATURE
        bodies = [r.body for r in start.reductions] + [start.value_grad]
        bodies += [e for s in start.elements for e in (s.offset, s.value)]
        return FeatureText(
            rows=rows,
            reductions=[
                ReductionText(
                    f"s_{identifier(r.name)}",
                    r.op,
                    IDENTITIES[r.op],
                    self.spread(self.printer()(r.body), wide),
                )
                for r in start.reductions
            ],
            value_grad=self.spread(self.printer()(start.value_grad), wide),
            elements=[self.scatter(s, {wide: "feature_exists"}) for s in start.elements],
            epilogue=[self.scatter(s, {ROW: "exists"}) for s in start.epilogue],
            reads_value=self.backward.gradient.reads_value and Value() in set(walk(*bodies)),
        )

    def _scan(self, outer: list[str]) -> ScanText | None:
        """The mask by itself, which tells the rows that have a key."""
        first = self.backward.passes[0]
        if first.mask is None:
            return None
        rows, keys = self.again(first.rows), self.again(first.keys)
        names = [*self._names(), *outer, *(n.name for n in rows)]
        return self.scan(first.mask, rows, keys, names)

    def scatter(
        self, s: Scatter, where: dict[Axes, str], printer: ExprPrinter | None = None
    ) -> ScatterText:
        """A scatter; ``where`` says at which points of its loop, then at which of fewer axes it adds.

        What has more axes than its offset is summed over them first.
        """
        printer = printer or self.printer()
        offset, value = printer(s.offset), printer(s.value)
        axes, holds = next(iter(where.items()))
        code = self.spread(value, axes)
        order = [a for a in (*self.order, "d") if a in axes]
        lost = [a for a in order if a not in offset.axes]
        kept = axes - frozenset(lost)
        if lost:
            code = f"tl.where({holds}, {code}, 0.0)"
            for axis in reversed(lost):
                code = f"tl.sum({code}, {order.index(axis)})"
            holds = _EXISTS[kept]
        at = self.spread(offset, kept) if kept else offset.code
        return ScatterText(
            tensor_name(s.tensor), at, code, holds, len(kept), s.tensor in self._stored
        )

    # -- walks -------------------------------------------------------------------------------------------------

    def walk_text(self, number: int, walk_: BackwardPass, outer: list[str]) -> WalkText:
        """A walk of a block of queries over the keys."""
        stats = []
        for name, formula in walk_.stats:
            stats.append(Named(f"s_{identifier(name)}", self.row(formula)))
        rows = self.define(walk_.rows, near=True)
        keys = self.define(walk_.keys, near=True)
        where = {PAIR: "counted"}
        bodies = [u.body for u in walk_.sums]
        bodies += [e for s in walk_.pair_grads for e in (s.offset, s.value)]
        results = [walk_.dot_grad] if walk_.dot_grad is not None else []
        text = self._elements(walk_, [*bodies, *results])
        printer = text.printer
        sums = [
            SumText(
                f"s_{identifier(u.name)}",
                u.op,
                IDENTITIES[u.op],
                self.spread(printer(u.body), PAIR),
            )
            for u in walk_.sums
        ]
        scatters = [self.scatter(s, where, printer) for s in walk_.pair_grads]
        dot_grad = None if walk_.dot_grad is None else self.spread(printer(walk_.dot_grad), PAIR)
        codes = [*text.codes, *(n.code for n in keys), dot_grad or ""]
        codes += [s.body for s in sums] + [c for s in scatters for c in (s.offset, s.value)]
        rows, keys = settled(rows, keys, codes)
        state = [(s.name, s.identity) for s in sums]
        state += [("dq", "")] if dot_grad else []
        names = {n.name for n in walk_.sums} | {n for n, _ in walk_.stats}
        known = [f"s_{identifier(n)}" for n in self._stats() if n not in names]
        known += [n.name for n in stats]
        return WalkText(
            number=number,
            stats=stats,
            rows=rows,
            loads=[],
            keys=keys,
            uses_keys=any("i_k" in c for c in codes),
            masked=walk_.mask is not None,
            masks_score=vanishes(walk_, weighs=False),
            needs_scores=text.dots or dot_grad is not None,
            needs_weight_grad=text.weight_grads,
            lets=text.lets,
            score=text.score,
            mask_lets=text.mask_lets,
            mask=text.mask,
            elements=text.elements,
            sums=sums,
            weight=None,
            dot_grad=dot_grad,
            scatters=scatters,
            key_sums=[],
            passed=reads(
                [*self._names(), *outer, *(n.name for n in rows), *known, *self._gradient_names()],
                [*codes, *arguments_of(scatters)],
            ),
            state=state,
        )

    def column_text(self, uniform: list[Named]) -> WalkText:
        """The walk of a block of keys over the queries."""
        walk_ = self.backward.passes[-1]
        rows = self.define(walk_.rows, near=True)
        keys = self.define(walk_.keys, near=True)
        assert walk_.weight is not None
        assert walk_.dot_grad is not None
        bodies = [s.value for s in walk_.key_grads]
        text = self._elements(walk_, [*bodies, walk_.weight, walk_.dot_grad])
        printer = text.printer
        weight = self.spread(printer(walk_.weight), PAIR)
        dot_grad = self.spread(printer(walk_.dot_grad), PAIR)
        sums = [
            SumText(f"sum{i}", "sum", "0.0", self.spread(printer(s.value), PAIR))
            for i, s in enumerate(walk_.key_grads)
        ]
        key_sums = [
            self.key_sum(s, f"sum{i}", printer(s.offset)) for i, s in enumerate(walk_.key_grads)
        ]
        codes = [*text.codes, weight, dot_grad, *(s.body for s in sums)]
        codes += [s.offset for s in key_sums]
        stats = [f"s_{identifier(n)}" for n in self._stats()]
        handed = {n.name for n in rows if reads(stats, [n.code])}
        loads = [n for n in needed(rows, codes) if n.name in handed]
        rows = needed([n for n in rows if n.name not in handed], codes)
        keys = needed(keys, codes)
        codes += [n.code for n in (*keys, *rows)]
        return WalkText(
            number=0,
            stats=[],
            rows=rows,
            loads=[Named(n.name, self._handed(n.name)) for n in loads],
            keys=keys,
            uses_keys=True,
            masked=walk_.mask is not None,
            masks_score=vanishes(walk_, weighs=True),
            needs_scores=True,
            needs_weight_grad=text.weight_grads,
            lets=text.lets,
            score=text.score,
            mask_lets=text.mask_lets,
            mask=text.mask,
            elements=text.elements,
            sums=sums,
            weight=weight,
            dot_grad=dot_grad,
            scatters=[],
            key_sums=key_sums,
            passed=reads(
                [
                    "i_k",
                    "N",
                    *(n for n in self._names() if n not in ("i_q", "M", "q_start")),
                    *(n.name for n in (*uniform, *keys)),
                ],
                codes,
            ),
            state=[*((s.name, s.identity) for s in sums), ("dk", ""), ("dv", "")],
        )

    def key_sum(self, s: Scatter, name: str, offset: Text) -> ScatterText:
        """What a block of keys adds after its walk: ``name`` is summed over queries."""
        total = name if offset.axes else f"tl.sum(tl.where(key_exists, {name}, 0.0), 0)"
        where = "key_exists" if offset.axes else "True"
        tensor = tensor_name(s.tensor)
        return ScatterText(
            tensor, offset.code, total, where, len(offset.axes), s.tensor in self._stored
        )

    def _handed(self, name: str) -> str:
        """How a value of rows that the first kernel left as a float is read."""
        lane = next(t.lane for t in self.locals.values() if t.code == name)
        code = f"tl.load(from_{name} + row_0 + row)"
        return {"f": code, "m": f"({code} != 0)"}.get(lane, f"{code}.to(tl.int64)")

    def _elements(self, walk_: BackwardPass, bodies: list[Expr]) -> Elements:
        self._plain = walk_.score is Dot()
        self.nonpositive = walk_.nonpositive
        read = set(walk(*bodies))
        scored = not self._plain and Score() in read
        masks = [] if walk_.mask is None else [walk_.mask]
        printer = self.printer()
        lets = printer.define([walk_.score] if scored else [], "t", later=masks)
        names = dict(printer.names)
        mask_lets = printer.define(masks, "m")
        mask = printer.tile(printer(masks[0])) if masks else None
        printer.names = names
        score = self.spread(printer(walk_.score), PAIR) if scored else None
        elements = printer.define(bodies, "e")
        if scored:
            read |= set(walk(walk_.score))
        read |= set(walk(*masks))
        codes = [n.code for n in (*lets, *mask_lets, *elements)] + [mask or "", score or ""]
        dots = Dot() in read or (self._plain and Score() in read)
        return Elements(
            printer, lets, mask_lets, mask, score, elements, codes, dots, WeightGrad() in read
        )

    def _names(self) -> list[str]:
        return [*BLOCK_NAMES, *self.arguments(self.backward.params, self.backward.tensors)]

    def _gradient_names(self) -> list[str]:
        names = []
        read = {t.name for t in self.backward.tensors}
        for t in self.backward.grads:
            name = tensor_name(t.name)
            names += [f"{name}_{part}" for part in ("stored", "fixed", "largest", "factors")]
            for axis in range(len(t.axes)):
                names.append(f"{name}_step{axis}")
                if t.name not in read:
                    names.append(f"{name}_extent{axis}")
        return names

    def _known(self) -> list[str]:
        """The row statistics that are known before the first walk."""
        gradient = self.backward.gradient
        kept = [stat for _, stat in gradient.kept]
        return [*gradient.saved, *kept, *(r.name for r in self.backward.start.reductions)]

    def _stats(self) -> list[str]:
        """Every row statistic, in the order it becomes known."""
        backward, names = self.backward, self._known()
        for walk_ in backward.passes:
            names += [name for name, _ in walk_.stats] + [u.name for u in walk_.sums]
        return list(dict.fromkeys(names))
