"""Turns a compilation into the story that ``attncompiler explain`` tells: every level, what changed it, and why."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from attncompiler.ir.expr import Const, Expr, Local, OldStat, substitute
from attncompiler.ir.gradient_printer import print_gradient
from attncompiler.ir.kernel import Kernel
from attncompiler.ir.kernel_printer import print_kernel, print_spans
from attncompiler.ir.passes.arrange import arrange
from attncompiler.ir.passes.stabilize import explain_stabilize
from attncompiler.ir.printer import Names, print_expression, print_plan, print_program
from attncompiler.ir.program import Program
from attncompiler.ir.set_formulas import LARGEST
from attncompiler.ir.streaming import Accumulator, RowStat, StreamingPlan
from attncompiler.ir.tile_plan import values_of
from attncompiler.ir.tiles import tile_set

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation
    from attncompiler.frontend import Trace

# Passes that can say more about a program than that they changed it.
NOTES: dict[str, Callable[[Program], str]] = {"stabilize": explain_stabilize}


def explain(
    compilation: Compilation,
    runs: Iterable[str] = (),
    tile_map: Iterable[str] = (),
    cost: Iterable[str] = (),
) -> str:
    """The levels of a variant as text, in the order the compiler walks through them.

    ``runs``: lines about the backends that run calls.
    ``tile_map``: the lines of a chapter about the tiles of one call, see ``tile_report.chapter``.
    ``cost``: the lines of a last chapter about the time of calls, see ``cost_report.cost_lines``.
    """
    trace, plan, kernel = compilation.trace, compilation.plan, compilation.kernel
    traced = compilation.steps[0][1]
    parts: list[tuple[str, Iterable[str]]] = [
        ("What you wrote", _definition(trace)),
        ("What it means", [_indented(print_program(traced))]),
        ("How the formulas were rewritten", _rewriting(compilation.steps)),
        ("How it passes over the keys", _streaming(plan)),
        ("How partial results merge", _merging(plan)),
        ("Which tiles are visited", _tiles(plan, kernel)),
        ("The loops", [_indented(print_kernel(kernel))]),
        ("How gradients are computed", _gradients(compilation)),
        ("What stays an argument", _arguments(trace, kernel)),
    ]
    last = (("What runs it", runs), ("The tile map", tile_map), ("What it costs", cost))
    for title, more in ((title, list(lines)) for title, lines in last):
        if more:
            parts.append((title, more))
    chapters = [
        "\n".join([f"{number}. {title}", *lines])
        for number, (title, lines) in enumerate(parts, start=1)
    ]
    return "\n\n".join([plan.program.name, *chapters]) + "\n"


def _indented(text: str, by: str = "   ") -> str:
    return textwrap.indent(text.rstrip("\n"), by)


def _definition(trace: Trace) -> Iterator[str]:
    cls = type(trace.variant)
    if trace.definition:
        yield _indented(trace.definition)
        return
    try:
        file, (lines, first) = inspect.getsourcefile(cls), inspect.getsourcelines(cls)
    except (OSError, TypeError):  # a class made at a prompt has no file
        file = None
        yield f"   class {cls.__name__} (source not available)"
    else:
        yield f"   {file}:{first}"
        yield _indented(textwrap.dedent("".join(lines)))
    slots = [
        f"{slot} (line {at.line})" if at.filename == file else f"{slot} ({at})"
        for slot, at in trace.slot_locations.items()
    ]
    yield f"   Slots of its own: {', '.join(slots) or 'none'}; the others are the defaults."
    if "prepare" in trace.slot_locations:
        yield "   prepare runs as ordinary torch before the kernel."


def _rewriting(steps: tuple[tuple[str, Program], ...]) -> Iterator[str]:
    """What each pass changed, then which passes found nothing to do."""
    from attncompiler.compiler import PASSES

    purpose = {name: _purpose(run) for name, run in PASSES}
    purpose["arrange"] = _purpose(arrange)
    idle = []
    for (_, before), (name, after) in pairwise(steps):
        note = NOTES[name](before) if name in NOTES else ""
        if after is before:
            idle.append((name, note))
            continue
        yield f"   {name}: {purpose[name]}"
        if note:
            yield _indented(note, "     ")
        yield from _difference(print_program(before), print_program(after))
    for name, note in idle:
        yield f"   {name}: nothing to do"
        if note:
            yield _indented(note, "     ")


def _purpose(run: Callable[..., Program]) -> str:
    """The first sentence of the module of a pass, which says what it turns into what."""
    text = sys.modules[run.__module__].__doc__ or ""
    first = " ".join(text.split("\n\n")[0].split()).removesuffix(".")
    return first[:1].lower() + first[1:]


def _difference(before: str, after: str) -> Iterator[str]:
    """The lines that differ, each beside the one that says the same thing in the other text."""
    old, new = (
        {line.split("=")[0].strip(): line.strip() for line in text.splitlines()}
        for text in (before, after)
    )
    for head in dict.fromkeys((*new, *old)):
        if old.get(head) != new.get(head):
            yield from (f"     - {text[head]}" for text in (old,) if head in text)
            yield from (f"     + {text[head]}" for text in (new,) if head in text)


def _streaming(plan: StreamingPlan) -> Iterator[str]:
    sums = "1 sum" if len(plan.accumulators) == 1 else f"{len(plan.accumulators)} sums"
    count = "one pass" if plan.passes == 1 else f"{plan.passes} passes"
    yield f"   {count[0].upper()}{count[1:]} over the keys, {sums} of values carried along."
    yield "   A pass reads all keys, tile by tile; its sweeps go over a tile one after the other."
    # The program stands above already.
    yield _indented(print_plan(plan).removeprefix(print_program(plan.program)).lstrip("\n"))


def _merging(plan: StreamingPlan) -> Iterator[str]:
    yield "   What a and b hold of two disjoint sets of keys gives what their union holds. Tiles in a row,"
    yield "   key ranges of several workers and a shared prefix are merged alike. A factor that is not finite is 0."
    names = Names.of(plan.program)
    for number in range(plan.passes):
        if plan.passes > 1:
            yield f"   pass {number}, with the final statistics of the passes before"
        for stat in plan.stats_of(number):
            sides = [_side(stat, side, names) for side in "ab"]
            text = " + ".join(sides) if stat.op == "sum" else f"{stat.op}({', '.join(sides)})"
            yield f"     {names.stat(stat.name)} = {text}"
        for acc in plan.accumulators_of(number):
            yield f"     {acc.name} = {' + '.join(_side(acc, side, names) for side in 'ab')}"


def _side(part: RowStat | Accumulator, side: str, names: Names) -> str:
    own = f"{part.name}_{side}"
    if part.factor is None:
        return own
    old: dict[Expr, Expr] = {
        OldStat(name): Local(f"{name}_{side}", "float", "bhq") for name in part.running
    }
    return f"{own} * {_factor(substitute(part.factor, old), names)}"


def _factor(expr: Expr, names: Names) -> str:
    text = print_expression(expr, names)
    return text if text.endswith(")") and text.find("(") == text.rfind("(") else f"({text})"


def _tiles(plan: StreamingPlan, kernel: Kernel) -> Iterator[str]:
    names = Names.of(plan.program)
    tiles = tile_set(plan.program.mask)
    possible, certain = (print_expression(e, names) for e in (kernel.possible, kernel.certain))
    if possible == certain == "true":
        yield "   All of them, and no element is masked."
        return
    yield "   A tile of queries q_lo..q_hi, keys k_lo..k_hi and query heads h_lo..h_hi is visited only if"
    yield f"     {possible}"
    yield "   and its elements are not masked if"
    yield f"     {certain}"
    if tiles.exact:
        values = (
            ""
            if tiles.small is Const(True)
            else f" and all numbers below 2**{LARGEST.bit_length() - 1}"
        )
        yield f"   Proved exact, for all lengths{values}: no tile without a pair is visited, no full one is masked."
    else:
        yield "   Always on the safe side, though not proved to find every tile without a pair and every full one:"
        yield f"     {tiles.reason}."
        if kernel.planned:
            yield "   So a planning kernel classifies the tiles of a call exactly, from bounds of the values"
            yield from (f"     {text}" for text in _planned(plan, names))
            yield "   and pair by pair in tiles that bounds leave open. Its table stays while nothing it reads changes."
    for axis, whose, spans in (
        ("k", "Queries q_lo..q_hi may see the keys", tiles.keys),
        ("q", "Keys k_lo..k_hi may be seen by the queries", tiles.queries),
    ):
        if spans is not None:
            yield f"   {whose}"
            yield from (f"     {text}" for text in print_spans(spans, axis, names))
    if tiles.no_spans and tiles.no_spans != tiles.reason:
        yield f"   Not as ranges: {tiles.no_spans}."


def _planned(plan: StreamingPlan, names: Names) -> Iterator[str]:
    """The values whose bounds a planning kernel finds in every tile."""
    found = values_of(plan.program.mask)
    yield from (print_expression(value, names) for value in found)
    if not found:
        yield "q and k themselves"


def _gradients(compilation: Compilation) -> Iterator[str]:
    yield "   Derived from the formulas above. d_x is the gradient of x, weight_grad that of a weight and value_grad"
    yield "   that of an element of the row before the output slot."
    yield _indented(print_gradient(compilation.gradient))


def _arguments(trace: Trace, kernel: Kernel) -> Iterator[str]:
    lifted = {p.name for p in trace.program.params if p.lifted}
    yield "   A new value of these never rebuilds the kernel."
    yield "   sizes B, H, G, M, N, all strides, q_start and scale " + _scale(trace, kernel)
    for p in kernel.params:
        origin = "a number in your formulas" if p.name in lifted else "parameter"
        yield f"   {p.name}: {p.kind} = {trace.params[p.name]!r} ({origin})"
    for t in kernel.tensors:
        yield f"   {t.name}[{', '.join(map(str, t.axes))}]: {t.kind} (tensor)"
    yield "   Fixed when a kernel is built: the element types and the extents D and Dv."
    yield from _unused(trace, kernel)


def _scale(trace: Trace, kernel: Kernel) -> str:
    if "scale" in trace.params:
        text = f"(parameter, {trace.params['scale']!r})"
    else:
        text = "(1/sqrt(D))" if trace.scale is None else f"({trace.scale!r})"
    factor = kernel.plan.program.dot_factor
    return text if factor == 1.0 else f"{text}, times {factor!r} taken out of the formulas"


def _unused(trace: Trace, kernel: Kernel) -> Iterable[str]:
    """Inputs of the variant that its kernel does not read."""
    read = {p.name for p in kernel.params} | {t.name for t in kernel.tensors} | {"scale"}
    names = [n for n in (*trace.params, *trace.tensors) if n not in read]
    if names:
        yield f"   Not read by the kernel: {', '.join(names)}."
