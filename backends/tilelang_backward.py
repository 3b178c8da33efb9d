"""Turns a Backward into the context of the TileLang backward template: loops over elements and rows, printed.

As in Triton's files one kernel walks over the keys of a block of queries and another over the queries of a block of
keys, with what the first one left. What is stored lies along the first axis of a kernel's tiles: rows, then keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from attncompiler.backends.gpu_expr import Axes, ExprPrinter, Named, Text
from attncompiler.backends.names import tensor_name
from attncompiler.backends.tilelang_loops import IDENTITIES, Loop, SeenLoops, Stored, TilelangLoops
from attncompiler.backends.tilelang_tiles import RunsLoops, run_loops
from attncompiler.backends.triton_backward import BackwardPrinter
from attncompiler.backends.triton_backward_context import (
    GradientArgument,
    ScatterText,
    WalkText,
)
from attncompiler.backends.triton_context import ReductionText
from attncompiler.backends.triton_loops import FEATURE, ROW, TensorArgument
from attncompiler.ir.backward import Scatter
from attncompiler.ir.expr import Expr, OutGrad, Value

# In the type of the inputs.
_ZERO = "T.Cast(dtype, 0)"


@dataclass(frozen=True, slots=True)
class Adds:
    """``gradient[offset] += value`` for the elements of a loop.

    ``values`` fills a buffer of the loop's shape with the values, 0 where there is nothing to add; of pairs ``whole``
    does so in tiles without a mask. ``add`` is the loop that adds them: its only store is (value, offset). Over the
    features of a row there is no buffer.
    """

    tensor: str
    stored: bool
    values: Loop | None
    add: Loop
    exists: str
    whole: Loop | None = None


@dataclass(frozen=True, slots=True)
class WalkLoops:
    """A walk: over the keys for a block of queries, or over the queries for a block of keys."""

    number: int
    scalars: list[Stored]
    before: Loop | None
    needs_scores: bool
    needs_weight_grad: bool
    score: Loop | None
    cut: Loop | None
    terms: Loop | None
    masked: Loop | None
    sums: list[tuple[str, str, str]]
    starts: list[tuple[str, str]]
    update: Loop | None
    multiplies: bool
    adds: list[Adds]


@dataclass(frozen=True, slots=True)
class TilelangBackwardContext:
    """Everything the backward template needs."""

    title: str
    definition: list[str]
    regenerate: str
    params: list[tuple[str, str]]
    tensors: list[tuple[TensorArgument, str]]
    grads: list[GradientArgument]
    summed: bool
    saved: list[str]
    kept: list[tuple[str, str]]
    uniform: list[Named]
    start_scalars: list[Stored]
    start_rows: Loop | None
    reads_value: bool
    reductions: list[tuple[str, str, Loop]]
    start_adds: list[Adds]
    own_go: Loop | None
    walks: list[WalkLoops]
    columns: WalkLoops
    loads: list[str]
    finish_scalars: list[Stored]
    finish: Loop | None
    row_adds: list[Adds]
    key_adds: list[Adds]
    handed: list[tuple[str, str]]
    known: list[str]
    rows: list[Stored]
    twins: list[Stored]
    pairs: list[str]
    column_keys: list[Stored]
    column_pairs: list[str]
    masked: bool
    seen: SeenLoops | None
    first_rows: list[Stored]
    first_row_loop: Loop | None
    reversed: bool
    runs: RunsLoops | None
    column_runs: RunsLoops | None
    dot_scale: float


class TilelangBackward(TilelangLoops, BackwardPrinter):
    """Builds the template's context for one backward."""

    def loops(self, title: str, definition: str, regenerate: str) -> TilelangBackwardContext:
        """The template's context; ``definition`` is the user's source, printed at the top of the file."""
        text = self.context(title, definition, regenerate)
        self.allocate()
        self._twins: dict[str, None] = {}
        start = text.start
        for name in (*text.saved, *(s for _, s in text.kept), *(r.name for r in start.reductions)):
            self.fragment(name)
        start_rows = self.keep(start.rows)
        start_adds = [self._adds("qd", s, [], "") for s in start.elements]
        start_adds += [self._adds("q", s, [], "") for s in start.epilogue]
        walks = [self._walk(w) for w in text.walks]
        finish = self.keep(text.finish)
        columns = TilelangBackward(self.backward, self._dtypes, ("k", "q"))
        columns.allocate()
        column_walk = columns._walk(text.columns, columns=True)
        key_adds = [columns._adds("k", s, text.columns.keys, "") for s in text.columns.key_sums]
        seen = self.seen(text.scan, text.runs)
        own_go = None
        if text.own_go:
            code = start.value_grad
            if text.masked:
                code = f"choose(seen[i] > 0.0, {code}, T.float32(0.0))"
            own_go = self.loop("d", [("go_tile[i, d]", f"T.Cast(dtype, {code})")])
        first_rows = self.keep(text.walks[0].rows)
        return TilelangBackwardContext(
            title=title,
            definition=text.definition,
            regenerate=regenerate,
            params=text.params,
            tensors=list(zip(text.tensors, self.dtypes.values(), strict=True)),
            grads=text.grads,
            summed=any(not g.stored for g in text.grads),
            saved=text.saved,
            kept=text.kept,
            uniform=text.uniform,
            start_scalars=start_rows,
            start_rows=self.filling(start_rows),
            reads_value=start.reads_value,
            reductions=[
                (r.name, IDENTITIES[r.op], self.loop("d", [(f"{r.name}[i]", _folded(r))]))
                for r in start.reductions
            ],
            start_adds=start_adds,
            own_go=own_go,
            walks=walks,
            columns=column_walk,
            loads=[x.name for x in text.columns.loads],
            finish_scalars=finish,
            finish=self.filling(finish),
            row_adds=[self._adds("q", s, [], "") for s in text.row_grads],
            key_adds=key_adds,
            handed=[
                (x.name, f"{x.name}[i]" if x.name in self.fragments else x.name)
                for x in text.handed
            ],
            known=text.known,
            rows=list(self.fragments.values()),
            twins=[self.fragments.get(n, Stored(n, "", "float32")) for n in self._twins],
            pairs=list(self.pairs),
            column_keys=list(columns.fragments.values()),
            column_pairs=list(columns.pairs),
            masked=text.masked,
            seen=seen,
            first_rows=first_rows,
            first_row_loop=self.filling(first_rows),
            reversed=text.reversed,
            runs=None if text.runs is None else run_loops(text.runs),
            column_runs=None
            if text.column_runs is None
            else run_loops(text.column_runs, "BLOCK_M", "M", "q_start"),
            dot_scale=text.dot_scale,
        )

    # -- hooks of the printers ---------------------------------------------------------------------------------

    def scatter(
        self, s: Scatter, where: dict[Axes, str], printer: ExprPrinter | None = None
    ) -> ScatterText:
        """A scatter as offset and value of one element."""
        printer = printer or self.printer()
        offset, value = printer(s.offset), printer(s.value)
        axes = next(iter(where))
        stored = s.tensor in self._stored
        return ScatterText(tensor_name(s.tensor), offset.code, value.code, "", len(axes), stored)

    def key_sum(self, s: Scatter, name: str, offset: Text) -> ScatterText:
        """What a block of keys adds after its walk."""
        tensor = tensor_name(s.tensor)
        return ScatterText(tensor, offset.code, f"{name}[j]", "", 1, s.tensor in self._stored)

    def _handed(self, name: str) -> str:
        lane = next(t.lane for t in self.locals.values() if t.code == name)
        code = f"from_{name}[row_0 + T.min(first + i, M - 1)]"
        return {"f": code, "m": f"({code} != 0.0)"}.get(lane, f'T.Cast("int64", {code})')

    # ----------------------------------------------------------------------------------------------------------

    def _leaf(self, printer: ExprPrinter, expr: Expr) -> Text:
        wide = ROW | FEATURE
        match expr:
            case Value():
                at = "(row_0 + T.min(first_row + i, M - 1)) * VALUE_DIM + d"
                return Text(f"values[{at}]", "f", wide)
            case OutGrad():
                return Text('T.Cast("float32", go_tile[i, d])', "f", wide)
            case _:
                return super()._leaf(printer, expr)

    def _apart(self, loop: Loop) -> Loop:
        """The loop with the rows that it reads in shared memory: threads that share a fragment would all add."""
        rows = {*self.fragments, "seen"}
        used: dict[str, None] = {}

        def twin(found: re.Match[str]) -> str:
            if found[1] not in rows:
                return found[0]
            used[found[1]] = None
            return f"at_{found[0]}"

        def replaced(code: str) -> str:
            return re.sub(r"\b(\w+)\[i\]", twin, code)

        lets = [Named(x.name, replaced(x.code)) for x in loop.lets]
        stores = [(target, replaced(code)) for target, code in loop.stores]
        self._twins |= used
        return Loop(loop.axes, lets, stores, tuple(used))

    def _adds(self, axes: str, s: ScatterText, lets: list[Named], guard: str) -> Adds:
        """A scatter; of pairs as two loops, values into a buffer of products' layout, then additions."""
        subscript = self.element(frozenset(axes))
        if axes == "qd":
            add = self._apart(self.loop("d", [(s.value, s.offset)]))
            return Adds(s.name, s.stored, None, add, "(first_row + i < M)")
        if axes == "qk":
            self.pairs["added"] = None
            cut = f"choose({guard}, {s.value}, T.float32(0.0))"
            values, whole = (
                self.loop(axes, [(f"added[{subscript}]", code)], lets) for code in (cut, s.value)
            )
            add = self.loop(axes, [(f"added[{subscript}]", s.offset)], lets)
            exists = "(first_row + i < M) & (first + j < N)"
            return Adds(s.name, s.stored, values, add, exists, whole)
        kind, exists = {
            "q": ("row", "(first_row + i < M)"),
            "k": ("key", "(first_key + j < N)"),
        }[axes]
        value_at, offset_at = (f"{kind}_{what}[{subscript}]" for what in ("values", "offsets"))
        stores = [(value_at, s.value), (offset_at, f'T.Cast("int64", {s.offset})')]
        values = self.loop(axes, stores, lets)
        add = self.loop(axes, [(value_at, offset_at)])
        return Adds(s.name, s.stored, values, add, exists)

    def _walk(self, w: WalkText, *, columns: bool = False) -> WalkLoops:
        both = "kq" if columns else "qk"
        pair = self.element(frozenset("qk"))
        inside = "(first + i < M)" if columns else "(first + j < N)"
        once = [*w.keys, *(x for x in w.rows if isinstance(x, Stored))] if columns else w.rows
        own = self.keep(once)
        inner = [*w.loads, *w.rows] if columns else list(w.keys)
        for x in w.stats:
            self.fragment(x.name)
        stats = [Stored(x.name, x.code, "float32") for x in w.stats]
        if w.needs_scores:
            self.pairs["raw"] = None
        if w.needs_weight_grad:
            self.pairs["weight_grad"] = None
        score = None
        if w.score:
            self.pairs["score"] = None
            score = self.loop(both, [(f"score[{pair}]", w.score)], [*inner, *w.lets])
        scored = f"{'score' if w.score else 'raw'}[{pair}]"
        allowed = Named("allowed", f"{w.mask} & {inside}" if w.mask else inside)
        mask_lets = [*inner, *w.lets, *w.mask_lets, allowed]
        cut = None
        if w.masks_score:
            cut = self.loop(
                both, [(scored, f"choose(allowed, {scored}, {IDENTITIES['max']})")], mask_lets
            )
        stores = [(f"terms{n}[{pair}]", u.body, IDENTITIES[u.op]) for n, u in enumerate(w.sums)]
        for n in range(len(w.sums)):
            self.pairs[f"terms{n}"] = None
        if w.weight:
            stores.append((f"narrow[{pair}]", f"T.Cast(dtype, {w.weight})", _ZERO))
        if w.dot_grad:
            target = "dot_tile" if columns else "narrow"
            stores.append((f"{target}[{pair}]", f"T.Cast(dtype, {w.dot_grad})", _ZERO))
        terms = masked = None
        if stores:
            lets = [*inner, *w.lets, *w.elements]
            terms = self.loop(both, [(target, code) for target, code, _ in stores], lets)
            if not w.masks_score:
                cuts = [(x, f"choose(allowed, {code}, {start})") for x, code, start in stores]
                masked = self.loop(both, cuts, [*mask_lets, *w.elements])
        adds = []
        for s in w.scatters:
            names = {x.name for x in mask_lets}
            lets = [*mask_lets, *(x for x in w.elements if x.name not in names)]
            guard = "allowed" if w.mask else inside
            adds.append(self._adds("qk", s, lets, guard))
        return WalkLoops(
            number=w.number,
            scalars=own,
            before=self.filling([*stats, *own]),
            needs_scores=w.needs_scores,
            needs_weight_grad=w.needs_weight_grad,
            score=score,
            cut=cut,
            terms=terms,
            masked=masked,
            sums=[(u.op, f"terms{n}", f"found_{u.name}") for n, u in enumerate(w.sums)],
            starts=[(u.name, IDENTITIES[u.op]) for u in w.sums],
            update=self._update(w),
            multiplies=w.dot_grad is not None,
            adds=adds,
        )

    def _update(self, w: WalkText) -> Loop | None:
        """What a tile's reductions add to the statistics of a walk."""
        index = "i" if self.order[0] == "q" else "j"
        updates = []
        for u in w.sums:
            self.fragment(u.name)
            self.fragment(f"found_{u.name}")
            now, found = f"{u.name}[{index}]", f"found_{u.name}[{index}]"
            both = f"{now} + {found}" if u.op == "sum" else f"T.{u.op}({now}, {found})"
            updates.append((now, both))
        return self.loop(self.order[0], updates) if updates else None


def _folded(r: ReductionText) -> str:
    now = f"{r.name}[i]"
    return f"{now} + {r.body}" if r.op == "sum" else f"T.{r.op}({now}, {r.body})"
