"""Arrange a Gradient as a Backward: every value moves to the outermost loop where it can be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attncompiler.ir.backward import Backward, BackwardPass, Scatter, Start, step
from attncompiler.ir.expr import (
    Const,
    Dot,
    Expr,
    Index,
    Load,
    OutGrad,
    Param,
    Score,
    Size,
    Stat,
    Value,
    WeightGrad,
    axes_of,
    children,
    loads_in,
    walk,
    with_children,
)
from attncompiler.ir.gradient import Gradient, Stage, TensorGradient
from attncompiler.ir.kernel import StatUpdate
from attncompiler.ir.passes.lower import (
    Hoisted,
    flatten_loads,
    key_ranges,
    never_positive,
    offset_of,
)
from attncompiler.ir.passes.products import factored
from attncompiler.ir.program import Reduction
from attncompiler.ir.tiles import needs_plan, tile_set

Flat = Callable[[Expr], Expr]


def lower_gradient(gradient: Gradient, wanted: frozenset[str]) -> Backward:
    """The loops of a gradient; only the tensors in ``wanted`` receive theirs."""
    program = gradient.program
    declared = {t.name: t for t in program.tensors}
    scatters = [t for t in gradient.tensors if t.tensor in wanted]

    def flat(expr: Expr) -> Expr:
        return flatten_loads(factored(expr), declared)

    def scatter(t: TensorGradient) -> Scatter:
        offset = flatten_loads(offset_of(declared[t.tensor], t.indices, step), declared)
        return Scatter(t.tensor, offset, flat(t.value))

    by_level: dict[str, list[Scatter]] = {}
    for t in scatters:
        by_level.setdefault(t.level, []).append(scatter(t))
    stages = _needed(gradient, scatters)
    inner = [
        flat(program.score),
        flat(program.mask),
        flat(gradient.weight),
        flat(gradient.dot_grad),
    ]
    inner += [flat(r.body) for s in stages for r in s.reductions]
    inner += [
        e
        for s in (*by_level.get("key", ()), *by_level.get("pair", ()))
        for e in (s.offset, s.value)
    ]
    packs = not any(
        isinstance(n, Load) and {"h", "k"} <= axes_of(n) and "q" not in axes_of(n)
        for n in walk(*inner)
    ) and not any("h" in axes_of(s.offset) for s in by_level.get("key", ()))
    uniform = Hoisted("u", "")
    start = _start(gradient, by_level, lambda expr: flatten_loads(expr, declared))
    passes = tuple(
        _lower_stage(
            gradient, stage, number, uniform, packs, flat, by_level, number == len(stages) - 1
        )
        for number, stage in enumerate(stages)
    )
    finish = Hoisted("e", "bhq")
    row_grads = tuple(
        Scatter(s.tensor, finish.add(s.offset), finish.add(s.value))
        for s in by_level.get("row", ())
    )
    tiles = tile_set(program.mask)
    possible, certain, ranges = flat(tiles.possible), flat(tiles.certain), key_ranges(tiles, flat)
    everything = [*inner, possible, certain, start.value_grad]
    everything += ranges.formulas() if ranges else ()
    everything += [let.expr for let in (*start.rows, *finish.lets())]
    everything += [r.body for r in start.reductions]
    everything += [e for s in (*start.elements, *start.epilogue) for e in (s.offset, s.value)]
    everything += [flat(e) for s in stages for _, e in s.rows]
    used = loads_in(everything)
    names = {n.name for n in walk(*everything) if isinstance(n, Param)}
    receiving = {t.tensor for t in scatters}
    return Backward(
        gradient=gradient,
        uniform=uniform.lets(),
        start=start,
        passes=passes,
        finish=finish.lets(),
        row_grads=row_grads,
        possible=possible,
        certain=certain,
        planned=needs_plan(program.mask),
        ranges=ranges,
        packs_heads=packs,
        params=tuple(p for p in program.params if p.name in names),
        tensors=tuple(t for t in program.tensors if t.name in used),
        grads=tuple(t for t in program.tensors if t.name in receiving),
    )


def _needed(gradient: Gradient, scatters: list[TensorGradient]) -> list[Stage]:
    """The stages without the sums of the last one that only unwanted tensors read."""
    *first, last = gradient.stages
    read = {n.name for t in scatters for n in walk(t.value) if isinstance(n, Stat)}
    return [*first, Stage(last.rows, tuple(r for r in last.reductions if r.name in read))]


# -- loops ---------------------------------------------------------------------------------------------------------


def _start(gradient: Gradient, by_level: dict[str, list[Scatter]], flat: Flat) -> Start:
    rows = Hoisted("a", "bhq")
    late = {r.name for r in gradient.features}

    def place(expr: Expr) -> Expr:
        """Hoist what does not vary along d; reductions over d are known only after their own loop."""
        match expr:
            case Const() | Value() | OutGrad() | Index() | Param() | Size() | Stat():
                return expr
        if "d" not in axes_of(expr) and not any(
            isinstance(n, Stat) and n.name in late for n in walk(expr)
        ):
            return rows.add(expr)
        return with_children(expr, tuple(place(c) for c in children(expr)))

    def placed(scatters: Iterable[Scatter]) -> tuple[Scatter, ...]:
        return tuple(Scatter(s.tensor, place(s.offset), place(s.value)) for s in scatters)

    reductions = tuple(Reduction(r.name, r.op, place(flat(r.body))) for r in gradient.features)
    value_grad = place(flat(gradient.value_grad))
    elements = placed(by_level.get("element", ()))
    epilogue = placed(by_level.get("epilogue", ()))
    return Start(rows.lets(), reductions, value_grad, elements, epilogue)


class _StageValues:
    """Places expressions of one walk over the keys; all row statistics are final in it."""

    def __init__(self, uniform: Hoisted, packs: bool, own: frozenset[str], number: int) -> None:
        self.uniform, self.packs, self.own = uniform, packs, own
        self.rows = Hoisted(f"r{number}_", "bhq")
        self.keys = Hoisted(f"k{number}_", "bk")
        self._memo: dict[Expr, Expr] = {}

    def place(self, expr: Expr) -> Expr:
        """The expression as the element loop computes it, its invariant parts replaced by locals."""
        if expr not in self._memo:
            self._memo[expr] = self._place(expr)
        return self._memo[expr]

    def _place(self, expr: Expr) -> Expr:
        if isinstance(expr, Const | Dot | Score | WeightGrad) or expr is Index("k"):
            return expr
        axes = axes_of(expr)
        if not axes & {"h", "q", "k"}:
            simple = isinstance(expr, (Param, Size, Index))
            return expr if simple else self.uniform.add(expr)
        if "k" not in axes:
            return self.rows.add(expr)
        scored = any(isinstance(n, (Dot, Score, WeightGrad)) for n in walk(expr))
        if "q" not in axes and not scored and ("h" not in axes or not self.packs):
            return self.keys.add(expr)
        return with_children(expr, tuple(self.place(c) for c in children(expr)))


def _lower_stage(
    gradient: Gradient,
    stage: Stage,
    number: int,
    uniform: Hoisted,
    packs: bool,
    flat: Flat,
    by_level: dict[str, list[Scatter]],
    last: bool,
) -> BackwardPass:
    program = gradient.program
    declared = {t.name: t for t in program.tensors}
    values = _StageValues(uniform, packs, frozenset(r.name for r in stage.reductions), number)
    nonpositive: set[Expr] = set()

    def element(expr: Expr, *, exact: bool = False) -> Expr:
        """The element's formula; an exact one is computed as conditions compute it."""
        lowered = flatten_loads(expr, declared) if exact else flat(expr)
        for node in walk(lowered):
            if never_positive(node, program.reductions):
                nonpositive.add(values.place(node))
        return values.place(lowered)

    def scatters(level: str) -> tuple[Scatter, ...]:
        found = by_level.get(level, []) if last else []
        return tuple(
            Scatter(s.tensor, values.place(s.offset), values.place(s.value)) for s in found
        )

    score = values.place(flat(program.score))
    mask = None if program.mask is Const(True) else values.place(flat(program.mask))
    # Which keys attain a maximum is asked by comparing with it.
    sums = tuple(
        StatUpdate(r.name, r.op, element(r.body, exact=r.op != "sum"), None)
        for r in stage.reductions
    )
    weight = element(gradient.weight) if last else None
    dot_grad = element(gradient.dot_grad) if last else None
    key_grads, pair_grads = scatters("key"), scatters("pair")
    return BackwardPass(
        stats=tuple((name, flat(e)) for name, e in stage.rows),
        rows=values.rows.lets(),
        keys=values.keys.lets(),
        score=score,
        mask=mask,
        sums=sums,
        weight=weight,
        dot_grad=dot_grad,
        key_grads=key_grads,
        pair_grads=pair_grads,
        nonpositive=frozenset(nonpositive),
    )
