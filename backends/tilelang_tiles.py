"""Which tile a step of a walk visits, in TileLang: the union of spans as pieces that do not overlap.

A walk is one loop, as two pipelined loops would need buffers of their own. Its number of steps and the tile of each
step are computed from the pieces; whether a tile is masked is asked of every tile, once for all threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncompiler.backends.triton_loops import RunsText, SpanText

# Three spans make seven pieces; masks of more are left to lists.
MOST_SPANS = 3


@dataclass(frozen=True, slots=True)
class RunsLoops:
    """``lets``: ends of spans, then of pieces, in order; ``count`` steps; the tile of step ``at``; is it broken."""

    lets: list[tuple[str, str]]
    count: str
    tile: str
    broken: str


def run_loops(runs: RunsText, block: str = "BLOCK_N", length: str = "N", shift: str = "") -> RunsLoops:
    """The walk over the tiles that ``runs.allowed`` meet; full ones meet none of ``runs.forbidden``."""
    lets: list[tuple[str, str]] = []
    for s in (*runs.allowed, *runs.forbidden):
        lets += _ends(s, block, length, shift)
    pieces: list[tuple[str, str]] = []
    for i, s in enumerate(runs.allowed):
        parts = [(f"{s.name}_lo", f"{s.name}_end")]
        for other in runs.allowed[:i]:
            parts = [
                part
                for lo, end in parts
                for part in (
                    (lo, f"T.min({end}, {other.name}_lo)"),
                    (f"T.max({lo}, {other.name}_end)", end),
                )
            ]
        pieces += parts
    total = "0"
    tile = ""
    for i, (lo, end) in enumerate(pieces):
        lets.append((f"piece{i}", lo))
        lets.append((f"steps{i}", f"{total} + T.max({end} - piece{i}, 0)"))
        before = total
        total = f"steps{i}"
        step = f"at - {before} + piece{i}" if i else "at + piece0"
        tile = step if i == 0 else f"choose(at < {before}, {tile}, {step})"
    broken = [f"(({s.name}_lo <= tile) & (tile < {s.name}_end))" for s in runs.forbidden]
    return RunsLoops(lets, total, tile, " | ".join([*broken, "(tile >= whole)"]))


def _ends(s: SpanText, block: str, length: str, shift: str) -> list[tuple[str, str]]:
    """The first tile of a span and the one behind it; both 0 where it is empty."""
    less = f" - {shift}" if shift else ""
    lo, end = f"{s.name}_lo", f"{s.name}_end"
    some = f"({s.name}_from < {s.name}_to)"
    when = f"({s.when}) & {some}" if s.when != "T.bool(True)" else some
    return [
        (f"{s.name}_from", f"T.max({s.lo}{less}, 0)"),
        (f"{s.name}_to", f"T.min({s.end}{less}, {length})"),
        (end, f'T.Cast("int32", choose({when}, T.ceildiv({s.name}_to, {block}), T.int32(0)))'),
        (lo, f'T.min(T.Cast("int32", T.truncdiv({s.name}_from, {block})), {end})'),
    ]
