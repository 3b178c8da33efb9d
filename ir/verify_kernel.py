"""Turns a Kernel into nothing, or into a VerifyError that names the loop and shows the kernel's text.

What is checked is what makes the loops of ``ir/kernel.py`` right and fast: a local is defined before it is read, in
a loop around its reader; what is computed once a row does not vary with the key, and so on for every loop; the
element loop computes nothing that an outer loop could; a statistic is read only once it exists; loads are flat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from attncompiler.ir.expr import (
    Call,
    Dot,
    Expr,
    Index,
    Load,
    Local,
    OldStat,
    Param,
    Score,
    Stat,
    Value,
    axes_of,
    kind_of,
    walk,
)
from attncompiler.ir.kernel import Kernel, KernelPass, Let, Sweep, extent, stride
from attncompiler.ir.kernel_printer import print_kernel
from attncompiler.ir.ops import Kind
from attncompiler.ir.printer import print_expression
from attncompiler.ir.tiles import CORNERS
from attncompiler.ir.verify import VerifyError

Problems = Iterator[tuple[str, str]]


def verify_kernel(kernel: Kernel) -> None:
    """Raise VerifyError unless the kernel is well formed."""
    for where, problem in _problems(kernel):
        raise VerifyError(where, problem, print_kernel(kernel))


@dataclass(frozen=True, slots=True)
class _Loop:
    """What a loop body may read: index axes, locals, statistics and further leaves."""

    name: str
    axes: str
    stats: frozenset[str] = frozenset()
    old: frozenset[str] = frozenset()
    locals: frozenset[Expr] = frozenset()
    leaves: frozenset[Expr] = frozenset()

    def after(self, lets: Iterable[Let]) -> _Loop:
        return replace(self, locals=self.locals | {let.local for let in lets})


def _problems(kernel: Kernel) -> Problems:
    for where, problem in _structure(kernel):
        yield where, problem
    scalars: set[tuple[str, Kind]] = {(p.name, p.kind) for p in kernel.params}
    scalars.add(("q_start", "int"))
    for t in kernel.tensors:
        for axis in range(len(t.axes)):
            scalars |= {(stride(t.name, axis), "int"), (extent(t.name, axis), "int")}
    corners = {(p.name, p.kind) for pair in CORNERS.values() for p in pair}
    if kernel.ranges is not None:
        read = {n.name for e in kernel.ranges.formulas() for n in walk(e) if isinstance(n, Param)}
        for name in sorted(read & {p.name for axis in "kh" for p in CORNERS[axis]}):
            yield (
                "tile",
                f"computes a range of keys from {name}, which a block of rows does not have",
            )
    kinds: dict[str, Kind] = {t.name: t.kind for t in kernel.tensors}
    for loop, expr, kind in _formulas(kernel):
        if kind_of(expr) != kind:
            yield loop.name, f"{print_expression(expr)} is of kind {kind_of(expr)}, not {kind}"
        known = scalars | corners if loop.name == "tile" else scalars
        for problem in _reads(expr, loop, known, kinds):
            yield loop.name, problem
    for number, kernel_pass in enumerate(kernel.passes):
        for problem in _hoistable(kernel_pass, kernel.packs_heads):
            yield f"pass {number}", problem


def _structure(kernel: Kernel) -> Problems:
    plan, finish = kernel.plan, kernel.finish
    if len(kernel.passes) != plan.passes:
        yield "kernel", f"has {len(kernel.passes)} passes, the plan {plan.passes}"
    lets = [*kernel.uniform, *finish.rows]
    updates, weights = [], []
    for kernel_pass in kernel.passes:
        lets += [*kernel_pass.rows, *kernel_pass.keys]
        lets += dict.fromkeys(let for sweep in kernel_pass.sweeps for let in sweep.lanes)
        updates += [u.name for sweep in kernel_pass.sweeps for u in sweep.stats]
        weights += [w.accumulator for w in kernel_pass.weights]
        if any(sweep.weights for sweep in kernel_pass.sweeps[:-1]):
            yield "kernel", "forms weights before the last sweep, over scores that are still read"
    for what, names, wanted in (
        ("local", [let.local.name for let in lets], None),
        ("statistic", updates, [s.name for s in plan.stats]),
        ("accumulator", weights, [a.name for a in plan.accumulators]),
        ("coefficient", [n for n, _ in finish.coefficients], [a.name for a in plan.accumulators]),
        ("keep", [n for n, _ in finish.kept], [n for n, _ in plan.program.kept]),
    ):
        if len(set(names)) < len(names):
            yield "kernel", f"defines a {what} twice: {', '.join(names)}"
        if wanted is not None and set(names) != set(wanted):
            yield "kernel", f"{what}s are {', '.join(names)}, the plan's {', '.join(wanted)}"


def _formulas(kernel: Kernel) -> Iterator[tuple[_Loop, Expr, Kind]]:
    """Every formula with what it may read and the kind it should have, in the order of evaluation."""
    tile = _Loop("tile", "bg")
    yield tile, kernel.possible, "bool"
    yield tile, kernel.certain, "bool"
    if kernel.ranges is not None:
        yield tile, kernel.ranges.small, "bool"
        for span in kernel.ranges.spans:
            yield tile, span.when, "bool"
            yield tile, span.lo, "int"
            yield tile, span.end, "int"
    outer = _Loop("uniform", "bg")
    yield from _lets(outer, kernel.uniform)
    outer = outer.after(kernel.uniform)
    finals = frozenset[str]()
    for kernel_pass in kernel.passes:
        yield from _pass(kernel_pass, replace(outer, stats=finals), kernel.packs_heads)
        finals |= {u.name for sweep in kernel_pass.sweeps for u in sweep.stats}
    finish = kernel.finish
    row = replace(outer, name="finish", axes="bghq", stats=finals)
    yield from _lets(row, finish.rows)
    row = row.after(finish.rows)
    for _, expr in (*finish.coefficients, *finish.kept):
        yield row, expr, "float"
    feature = replace(row, axes="bghqd", leaves=frozenset({Value()}))
    for r in finish.reductions:
        yield feature, r.body, "float"
        feature = replace(feature, stats=feature.stats | {r.name})
    yield feature, finish.output, "float"


def _lets(loop: _Loop, lets: Sequence[Let]) -> Iterator[tuple[_Loop, Expr, Kind]]:
    for number, let in enumerate(lets):
        yield loop.after(lets[:number]), let.expr, let.local.kind


def _pass(
    kernel_pass: KernelPass, outer: _Loop, packs_heads: bool
) -> Iterator[tuple[_Loop, Expr, Kind]]:
    row = replace(outer, name="row", axes="bghq")
    yield from _lets(row, kernel_pass.rows)
    # A key value is one scalar for all rows of the block, which may be rows of several heads.
    key = replace(outer, name="key", axes="bgk" if packs_heads else "bghk", stats=frozenset())
    yield from _lets(key, kernel_pass.keys)
    lane = replace(outer.after(kernel_pass.rows), name="lane", axes="bg", stats=frozenset())
    element = replace(lane.after(kernel_pass.keys), name="element", axes="bgk")
    scoring = replace(element, leaves=frozenset({Dot()}))
    yield scoring, kernel_pass.score, "float"
    if kernel_pass.mask is not None:
        yield element, kernel_pass.mask, "bool"
    element = replace(element, leaves=frozenset({Score()}))
    for sweep in kernel_pass.sweeps:
        yield from _lets(lane, sweep.lanes)
        lane_in, element_in = lane.after(sweep.lanes), element.after(sweep.lanes)
        for part in sweep.parts:
            yield element_in, part.body, "float"
            if part.factor is not None:
                yield lane_in, part.factor, "float"
        moved = {u.name for u in sweep.stats}
        lane = replace(lane, stats=lane.stats | moved, old=lane.old | moved)
        element = replace(element, stats=element.stats | moved)


def _reads(
    expr: Expr, loop: _Loop, params: set[tuple[str, Kind]], tensors: dict[str, Kind]
) -> Iterator[str]:
    for node in walk(expr):
        match node:
            case Param(name, kind) if (name, kind) not in params:
                yield f"reads a parameter {name} of kind {kind} that is not an argument"
            case Load(tensor, indices, kind):
                if tensors.get(tensor) != kind:
                    yield f"reads a tensor {tensor} of kind {kind} that is not an argument"
                if len(indices) != 1 or kind_of(indices[0]) != "int":
                    yield f"reads {print_expression(node)}, whose index is not one offset"
            case Index(axis) if axis not in loop.axes:
                yield f"reads the index {axis}, which does not exist in this loop"
            case Local(name) if node not in loop.locals:
                yield f"reads {name}, which no enclosing loop has computed"
            case Stat(name) if name not in loop.stats:
                yield f"reads the statistic {name}, which does not exist yet"
            case OldStat(name) if name not in loop.old:
                yield f"reads the old value of {name}, which has not moved"
            case Dot() | Score() | Value() if node not in loop.leaves:
                yield f"reads {print_expression(node)}"


def _hoistable(kernel_pass: KernelPass, packs_heads: bool) -> Iterator[str]:
    """What the element loop computes although an outer loop could."""
    elements = [kernel_pass.score, *([] if kernel_pass.mask is None else [kernel_pass.mask])]
    elements += [x.body for s in kernel_pass.sweeps for x in s.parts]
    for node in walk(*elements):
        if isinstance(node, Call | Load):
            axes = axes_of(node)
            if "k" not in axes:
                yield f"computes {print_expression(node)} for every element, though once a row will do"
            elif "q" not in axes and ("h" not in axes or not packs_heads):
                yield f"computes {print_expression(node)} for every element, though once a key will do"
    for node in walk(*_lane_formulas(kernel_pass.sweeps)):
        if isinstance(node, Call | Load) and not _moves(node):
            yield f"computes {print_expression(node)} for every tile, though once a pass will do"


def _lane_formulas(sweeps: Iterable[Sweep]) -> Iterator[Expr]:
    for sweep in sweeps:
        yield from (let.expr for let in sweep.lanes)
        yield from (x.factor for x in sweep.parts if x.factor is not None)


def _moves(expr: Expr) -> bool:
    return any(isinstance(n, Stat | OldStat) for n in walk(expr))
