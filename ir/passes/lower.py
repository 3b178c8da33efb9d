"""Arrange a StreamingPlan as a Kernel: every value moves to the outermost loop where it can be computed.

Example: ``slope[h] * (q - k)`` becomes the row values ``r0 = slope[h]`` and ``r1 = q`` and, for each element,
``r0 * (r1 - k)``; ``bias[b, h, q, k]`` becomes a row offset and an element load at ``r0 + k * stride``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attncompiler.ir.expr import (
    Call,
    Const,
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
    axes_of,
    children,
    kind_of,
    loads_in,
    rewrite,
    walk,
    with_children,
)
from attncompiler.ir.kernel import (
    Finish,
    Kernel,
    KernelPass,
    KeyRanges,
    Let,
    StatUpdate,
    Sweep,
    WeightTile,
    extent,
    stride,
)
from attncompiler.ir.passes.products import factored
from attncompiler.ir.program import Program, Reduction, TensorDecl
from attncompiler.ir.streaming import (
    Accumulator,
    RowStat,
    StreamingPlan,
    finite_or_zero,
    readable,
    rescaling,
)
from attncompiler.ir.tiles import TileSet, needs_plan, tile_set

ROW = Call("sub", (Index("q"), Param("q_start", "int")))


def lower(plan: StreamingPlan) -> Kernel:
    """The kernel of a plan; see ``ir/kernel.py`` for what it contains."""
    program = plan.program
    tensors = {t.name: t for t in program.tensors}

    def flat(expr: Expr) -> Expr:
        return flatten_loads(factored(expr), tensors)

    parts: list[RowStat | Accumulator] = [*plan.stats, *plan.accumulators]
    bodies = [flat(x.body) for x in parts]
    factors = [flat(x.factor) for x in parts if x.factor is not None]
    inner = [flat(program.score), flat(program.mask), *bodies, *factors]
    # A load over heads and keys but not queries is one scalar a key when all rows of a block share the head.
    packs = not any(
        isinstance(n, Load) and {"h", "k"} <= axes_of(n) and "q" not in axes_of(n)
        for n in walk(*inner)
    )
    uniform = Hoisted("u", "")
    passes = tuple(_lower_pass(plan, p, uniform, packs, flat) for p in range(plan.passes))
    finish = _finish(plan, lambda expr: flatten_loads(expr, tensors))
    tiles = tile_set(program.mask)
    possible, certain, ranges = flat(tiles.possible), flat(tiles.certain), key_ranges(tiles, flat)
    outer = [c for _, c in finish.coefficients] + [e for _, e in finish.kept] + [finish.output]
    outer += [r.body for r in finish.reductions] + [let.expr for let in finish.rows]
    everything = [*inner, *outer, possible, certain, *(ranges.formulas() if ranges else ())]
    used = loads_in(everything)
    names = {n.name for n in walk(*everything) if isinstance(n, Param)}
    return Kernel(
        plan=plan,
        uniform=uniform.lets(),
        passes=passes,
        finish=finish,
        possible=possible,
        certain=certain,
        planned=needs_plan(program.mask),
        ranges=ranges,
        packs_heads=packs,
        params=tuple(p for p in program.params if p.name in names),
        tensors=tuple(t for t in program.tensors if t.name in used),
    )


def key_ranges(tiles: TileSet, flat: Callable[[Expr], Expr]) -> KeyRanges | None:
    """The keys of a block of rows, unless their ranges are unknown or the mask allows all of them, or none."""
    if not tiles.keys or tiles.possible is Const(True):
        return None
    return KeyRanges(tuple(s.mapped(flat) for s in tiles.keys), flat(tiles.small))


def flatten_loads(expr: Expr, tensors: dict[str, TensorDecl]) -> Expr:
    """Give every load one index, its offset: clamped where computed, summed from outer loops to inner."""

    def rule(node: Expr) -> Expr:
        if not isinstance(node, Load):
            return node
        offset = offset_of(tensors[node.tensor], node.indices, stride)
        return Load(node.tensor, (offset,), node.kind)

    return rewrite(expr, rule)


def offset_of(decl: TensorDecl, indices: tuple[Expr, ...], step: Callable[[str, int], str]) -> Expr:
    """The offset of an element: clamped indices times strides (``step`` names them), outer loops first."""

    def depth(term: Expr) -> int:
        axes = axes_of(term)
        return 2 * bool(axes & {"k", "d"}) + bool(axes & {"h", "q"})

    terms = [
        Call("mul", (_clamped(decl, axis, index), Param(step(decl.name, axis), "int")))
        for axis, index in enumerate(indices)
    ]
    offset: Expr = Const(0)
    for term in sorted(terms, key=depth):
        offset = term if offset is Const(0) else Call("add", (offset, term))
    return offset


def _clamped(decl: TensorDecl, axis: int, index: Expr) -> Expr:
    """An index that cannot leave the tensor. Indices that are in range by the checks at the call stay as they are."""
    declared = decl.axes[axis]
    if (isinstance(index, Index) and index.axis == declared and declared != "q") or (
        index is ROW and declared == "q"
    ):
        return index
    if isinstance(index, Const) and isinstance(declared, int) and 0 <= int(index.value) < declared:
        return index
    length = Param(extent(decl.name, axis), "int")
    if isinstance(index, Const) and int(index.value) < 0:  # counts from the end
        index = Call("sub", (length, Const(-int(index.value))))
    last = Call("sub", (length, Const(1)))
    return Call("max", (Call("min", (index, last)), Const(0)))


class Hoisted:
    """Values moved out of a loop: one Let a distinct expression."""

    def __init__(self, prefix: str, axes: str) -> None:
        self.prefix, self.axes = prefix, axes
        self.table: dict[Expr, Let] = {}

    def add(self, expr: Expr, value: Expr | None = None) -> Expr:
        """The local that holds ``expr``, computed as ``value`` when that is written with other locals."""
        if expr not in self.table:
            local = Local(f"{self.prefix}{len(self.table)}", kind_of(expr), self.axes)
            self.table[expr] = Let(local, expr if value is None else value)
        return self.table[expr].local

    def lets(self) -> tuple[Let, ...]:
        """All values, in the order they were first needed."""
        return tuple(self.table.values())


class _PassValues:
    """Places expressions of one pass; ``running`` names the statistics that move during it."""

    def __init__(self, uniform: Hoisted, packs: bool, running: frozenset[str], number: int) -> None:
        self.uniform, self.packs, self.running = uniform, packs, running
        self.rows = Hoisted(f"r{number}_", "bhq")
        self.keys = Hoisted(f"k{number}_", "bk")
        self.lanes = Hoisted(f"v{number}_", "bhq")
        self._memo: dict[Expr, Expr] = {}

    def moves(self, expr: Expr) -> bool:
        """Whether a value depends on a running statistic."""
        return any(
            isinstance(n, OldStat) or (isinstance(n, Stat) and n.name in self.running)
            for n in walk(expr)
        )

    def place(self, expr: Expr) -> Expr:
        """The expression as the element loop computes it, its invariant parts replaced by locals."""
        if expr not in self._memo:
            self._memo[expr] = self._place(expr)
        return self._memo[expr]

    def _place(self, expr: Expr) -> Expr:
        match expr:
            case Const() | Dot() | Score() | OldStat() | Index("k"):
                return expr
            case Stat(name) if name in self.running:
                return expr
        axes = axes_of(expr)
        if not axes & {"h", "q", "k"}:
            simple = isinstance(expr, (Param, Size, Index))
            return expr if simple else self.uniform.add(expr)
        if "k" not in axes:
            if not self.moves(expr):
                return self.rows.add(expr)
            return self.lanes.add(expr, self.lane(expr))
        scored = any(isinstance(n, (Dot, Score)) for n in walk(expr))
        if "q" not in axes and not scored and ("h" not in axes or not self.packs):
            return self.keys.add(expr)
        return with_children(expr, tuple(self.place(c) for c in children(expr)))

    def lane(self, expr: Expr) -> Expr:
        """A row-only expression of running statistics, written with locals but not hoisted itself."""
        if not children(expr) or not self.moves(expr):
            return self.place(expr)
        return with_children(expr, tuple(self.lane(c) for c in children(expr)))


def _lower_pass(
    plan: StreamingPlan, number: int, uniform: Hoisted, packs: bool, flat: Callable[[Expr], Expr]
) -> KernelPass:
    stats, accumulators = plan.stats_of(number), plan.accumulators_of(number)
    values = _PassValues(uniform, packs, frozenset(s.name for s in stats), number)

    moving = {s.name for s in stats}
    nonpositive: set[Expr] = set()

    def body(part: RowStat | Accumulator) -> Expr:
        expr = readable(part.body, moving)
        for node in walk(expr):
            if never_positive(node, plan.stats):
                nonpositive.add(values.place(flat(node)))
        return values.place(flat(expr))

    def factor(part: RowStat | Accumulator) -> Expr | None:
        expr = rescaling(part)
        return None if expr is None else values.lane(flat(expr))

    score = values.place(flat(plan.program.score))
    mask = None if plan.program.mask is Const(True) else values.place(flat(plan.program.mask))
    last = max([0, *(s.sweep for s in stats), *(a.sweep for a in accumulators)])
    sweeps = []
    for sweep in range(last + 1):
        updates = tuple(
            StatUpdate(s.name, s.op, body(s), factor(s)) for s in stats if s.sweep == sweep
        )
        # Weights overwrite the scores, so all of them are formed in the last sweep.
        weights = tuple(
            WeightTile(a.name, body(a), factor(a)) for a in accumulators if sweep == last
        )
        parts: list[StatUpdate | WeightTile] = [*updates, *weights]
        factors = [x.factor for x in parts if x.factor is not None]
        read = set(walk(*(x.body for x in parts), *factors))
        lanes = tuple(let for let in values.lanes.lets() if let.local in read)
        sweeps.append(Sweep(lanes, updates, weights))
    return KernelPass(
        values.rows.lets(), values.keys.lets(), score, mask, tuple(sweeps), frozenset(nonpositive)
    )


def never_positive(node: Expr, stats: Sequence[RowStat | Reduction]) -> bool:
    """Whether a node is an exponential of ``x - (maximum of x)`` or ``(minimum of x) - x``."""
    match node:
        case Call("exp" | "exp2", (Call("sub", (x, y)),)):
            return _bounds("max", y, x, stats) or _bounds("min", x, y, stats)
        case _:
            return False


def _bounds(op: str, extreme: Expr, x: Expr, stats: Sequence[RowStat | Reduction]) -> bool:
    match extreme:
        case Call("where", (_, value, Const(0.0))) if extreme is finite_or_zero(value):
            return _bounds(op, value, x, stats)
        case Call(inner, args) if inner == op:
            return any(_bounds(op, a, x, stats) for a in args)
        case Stat(name):
            return any(s.name == name and s.op == op and s.body is x for s in stats)
        case _:
            return False


def _finish(plan: StreamingPlan, flat: Callable[[Expr], Expr]) -> Finish:
    program: Program = plan.program
    late = {r.name for r in program.output_reductions}
    rows = Hoisted("e", "bhq")

    def place(expr: Expr) -> Expr:
        """Hoist what does not vary along d; reductions over d are known only after their own loop."""
        match expr:
            case Const() | Value() | Index() | Param() | Size() | Stat():
                return expr
        if "d" not in axes_of(expr) and not any(
            isinstance(n, Stat) and n.name in late for n in walk(expr)
        ):
            return rows.add(expr)
        return with_children(expr, tuple(place(c) for c in children(expr)))

    reductions = tuple(
        Reduction(r.name, r.op, place(flat(r.body))) for r in program.output_reductions
    )
    output = place(flat(program.output))
    return Finish(
        rows=rows.lets(),
        coefficients=tuple((a.name, flat(a.coefficient)) for a in plan.accumulators),
        kept=tuple((name, flat(e)) for name, e in program.kept),
        reductions=reductions,
        output=output,
    )
