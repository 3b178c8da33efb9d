"""Turns a Kernel into the context of the TileLang forward template: loops over elements and rows, printed."""

from __future__ import annotations

from dataclasses import dataclass

from attncompiler.backends.gpu_expr import Named
from attncompiler.backends.tilelang_loops import IDENTITIES, Loop, SeenLoops, Stored, TilelangLoops
from attncompiler.backends.tilelang_tiles import RunsLoops, run_loops
from attncompiler.backends.triton_context import ForwardContext, PassText, SweepText
from attncompiler.backends.triton_forward import ForwardPrinter
from attncompiler.backends.triton_loops import TensorArgument


@dataclass(frozen=True, slots=True)
class Found:
    """A reduction of a buffer of pairs: ``found_x = op(buffer)``."""

    op: str
    buffer: str
    name: str


@dataclass(frozen=True, slots=True)
class Product:
    """``name`` += the weights in ``buffer`` times values, after ``name`` is multiplied by ``factor`` (a fragment)."""

    name: str
    buffer: str
    factor: str | None
    bounded: bool


@dataclass(frozen=True, slots=True)
class SweepLoops:
    """One look at the elements of a tile, in the order in which it happens."""

    lanes: list[Stored]
    lane_loop: Loop | None
    terms: Loop | None
    masked: Loop | None
    found: list[Found]
    update: Loop | None
    products: list[Product]


@dataclass(frozen=True, slots=True)
class PassLoops:
    """One walk over the keys."""

    number: int
    rows: list[Stored]
    row_loop: Loop | None
    needs_scores: bool
    score: Loop | None
    masked: Loop | None
    sweeps: list[SweepLoops]
    stats: list[tuple[str, str]]
    sums: list[str]

    @property
    def weighs(self) -> bool:
        """Whether the walk multiplies weights by values."""
        return bool(self.sums)

    @property
    def products(self) -> list[Product]:
        """Those of all sweeps: what is summed is read after the walk, so they may come last."""
        return [w for s in self.sweeps for w in s.products]


@dataclass(frozen=True, slots=True)
class FinishLoops:
    """The end of a block of rows."""

    scalars: list[Stored]
    rows: Loop | None
    value: Loop
    kept: list[Loop]
    reductions: list[tuple[str, str, Loop]]
    output: Loop


@dataclass(frozen=True, slots=True)
class TilelangContext:
    """Everything the forward template needs."""

    title: str
    definition: list[str]
    regenerate: str
    params: list[tuple[str, str]]
    tensors: list[tuple[TensorArgument, str]]
    uniform: list[Named]
    passes: list[PassLoops]
    finish: FinishLoops
    stats: list[str]
    kept: int
    rows: list[Stored]
    pairs: list[str]
    weights: list[str]
    masked: bool
    widens: bool
    seen: SeenLoops | None
    reversed: bool
    runs: RunsLoops | None


class TilelangForward(TilelangLoops, ForwardPrinter):
    """Builds the template's context for one kernel."""

    def loops(self, title: str, definition: str, regenerate: str) -> TilelangContext:
        """The template's context; ``definition`` is the user's source, printed at the top of the file."""
        text = self.context(title, definition, regenerate)
        self.allocate()
        self._weights: dict[str, None] = {}
        passes = [self._pass(p, text) for p in text.passes]
        finish = self._finish(text)
        for name in text.stats:
            self.fragment(name)
        kernel = self.kernel
        return TilelangContext(
            title=title,
            definition=text.definition,
            regenerate=regenerate,
            params=text.params,
            tensors=[
                (t, dtype) for t, dtype in zip(text.tensors, self.dtypes.values(), strict=True)
            ],
            uniform=text.uniform,
            passes=passes,
            finish=finish,
            stats=text.stats,
            kept=len(kernel.finish.kept),
            rows=list(self.fragments.values()),
            pairs=list(self.pairs),
            weights=list(self._weights),
            masked=text.masked,
            widens=any(not w.bounded for p in passes for s in p.sweeps for w in s.products),
            seen=self.seen(text.scan, text.runs),
            reversed=text.reversed,
            runs=None if text.runs is None else run_loops(text.runs),
        )

    def _pass(self, p: PassText, text: ForwardContext) -> PassLoops:
        rows = self.keep(p.rows)
        pair = self.element(frozenset("qk"))
        score = None
        if p.needs_scores:
            self.pairs["raw"] = None
        if p.score:
            score = self.loop("qk", [(f"score[{pair}]", p.score)], [*p.keys, *p.score_lets])
            self.pairs["score"] = None
        scored = f"{'score' if p.score else 'raw'}[{pair}]"
        inside = "(first + j < N)"
        allowed = Named("allowed", f"{p.mask} & {inside}" if p.mask else inside)
        mask_lets = [*p.keys, *p.score_lets, *p.mask_lets, allowed]
        masked = None
        if p.masks_score:
            code = f"choose(allowed, {scored}, {IDENTITIES['max']})"
            masked = self.loop("qk", [(scored, code)], mask_lets)
        sweeps: list[SweepLoops] = []
        buffers = 0
        for s in p.sweeps:
            sweeps.append(self._sweep(buffers, s, p, mask_lets, scored))
            # Weights are multiplied after the last sweep, so no buffer is used twice.
            buffers += len(sweeps[-1].terms.stores) if sweeps[-1].terms else 0
        stats = [(name, IDENTITIES[_op_of(p, name)]) for name, start in p.state if start]
        return PassLoops(
            number=p.number,
            rows=rows,
            row_loop=self.filling(rows),
            needs_scores=p.needs_scores,
            score=score,
            masked=masked,
            sweeps=sweeps,
            stats=stats,
            sums=[name for name, start in p.state if not start],
        )

    def _sweep(
        self, taken: int, s: SweepText, p: PassText, mask_lets: list[Named], scored: str
    ) -> SweepLoops:
        lanes = self.keep(s.lanes)
        pair = self.element(frozenset("qk"))
        buffers: dict[str, str] = {}
        stores: list[tuple[str, str]] = []
        identities: dict[str, str] = {}

        def buffer(code: str, identity: str) -> str:
            """Where the value of every pair is, for those that share it."""
            if p.masks_score and code == scored:
                return code.partition("[")[0]
            key = code if p.masks_score else f"{identity} {code}"
            if key not in buffers:
                name = f"terms{taken + len(buffers)}"
                buffers[key] = name
                identities[name] = identity
                stores.append((f"{name}[{pair}]", code))
                self.pairs[name] = None
            return buffers[key]

        found, updates = [], []
        for x in s.stats:
            raw = x.raw and p.masks_score
            where = "raw" if raw else buffer(x.body, IDENTITIES[x.op])
            self.fragment(f"found_{x.name}")
            found.append(Found(x.op, where, f"found_{x.name}"))
            value = f"found_{x.name}[i]" + (" * unit" if raw else "")
            now = f"{x.name}[i]"
            old = f"old_{x.name[2:]}"
            self.fragment(old)
            updates.append((f"{old}[i]", now))
            if x.op == "sum":
                updates.append((now, f"{now}{f' * {x.factor}' if x.factor else ''} + {value}"))
            else:
                if x.factor:
                    kept = f"choose({now} == {IDENTITIES[x.op]}, {now}, {now} * {x.factor})"
                    updates.append((now, kept))
                updates.append((now, f"T.{x.op}({now}, {value})"))
        products = []
        for w in s.weights:
            where = buffer(w.body, IDENTITIES["sum"])
            factor = None
            if w.factor:
                factor = f"factor_{w.name}"
                self.fragment(factor)
                updates.append((f"{factor}[i]", w.factor))
            self._weights[w.name] = None
            products.append(Product(w.name, where, factor, w.bounded))
        terms = masked = None
        if stores:
            terms = self.loop("qk", stores, [*p.keys, *p.score_lets, *s.elements])
            if not p.masks_score:
                cut = [
                    (at, f"choose(allowed, {code}, {identities[at.partition('[')[0]]})")
                    for at, code in stores
                ]
                masked = self.loop("qk", cut, [*mask_lets, *s.elements])
        update = self.loop("q", updates, s.factors) if updates else None
        return SweepLoops(lanes, self.filling(lanes), terms, masked, found, update, products)

    def _finish(self, text: ForwardContext) -> FinishLoops:
        finish = text.finish
        rows = self.keep(finish.rows)
        for name, code in finish.coefficients:
            rows.append(Stored(f"coefficient_{name}", code, "float32"))
            self.fragment(rows[-1].name)
        value = " + ".join(f"coefficient_{n}[i] * {n}[i, d]" for n, _ in finish.coefficients)
        exists = "seen[i] > 0.0" if text.masked else "N > 0"
        reductions = []
        for r in finish.reductions:
            body = f"choose(d < VALUE_DIM, {r.body}, {IDENTITIES[r.op]})"
            reductions.append((r.op, r.name, self.loop("qd", [("features[i, d]", body)])))
        zero = "T.float32(0.0)"
        return FinishLoops(
            scalars=rows,
            rows=self.filling(rows),
            value=self.loop("qd", [("value[i, d]", f"choose({exists}, {value}, {zero})")]),
            kept=[self.loop("q", [("given[i]", code)]) for code in finish.kept],
            reductions=reductions,
            output=self.loop("qd", [("value[i, d]", finish.output)]),
        )


def _op_of(p: PassText, name: str) -> str:
    return next(s.op for sweep in p.sweeps for s in sweep.stats if s.name == name)
