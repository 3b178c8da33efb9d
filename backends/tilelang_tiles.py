"""Which tile a step of a walk visits, in TileLang: the union of spans as pieces that do not overlap.

A walk is one loop, as two pipelined loops would need buffers of their own. Its number of steps and the tile of each
step are computed from the pieces; whether a tile is masked is asked of every tile, once for all threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncompiler.backends.triton_loops import RunsText, SpanText


@dataclass(frozen=True, slots=True)
class RunsLoops:
    """``lets``: ends of spans, then of pieces, in order; ``count`` steps; the tile of step ``at``; is it broken."""

    lets: list[tuple[str, str]]
    count: str
    tile: str
    broken: str


def run_loops(
    runs: RunsText, block: str = "BLOCK_N", length: str = "N", shift: str = ""
) -> RunsLoops:
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
    total, tile = "", ""
    for i, (lo, end) in enumerate(pieces):
        step = f"at + {lo}"
        count = f"T.max({end} - {lo}, 0)"
        if i:
            lets.append((f"piece{i}", lo))
            step, count = f"at - {total} + piece{i}", f"{total} + T.max({end} - piece{i}, 0)"
        tile = f"choose(at < {total}, {tile}, {step})" if i else step
        total = f"steps{i}"
        lets.append((total, count))
    broken = [f"(({s.name}_lo <= tile) & (tile < {s.name}_end))" for s in runs.forbidden]
    return RunsLoops(lets, total, tile, " | ".join([*broken, "(tile >= whole)"]))


def _ends(s: SpanText, block: str, length: str, shift: str) -> list[tuple[str, str]]:
    """The first tile of a span and the one behind it; both 0 where it is empty."""
    less = f" - {shift}" if shift else ""
    lo, end = f"{s.name}_lo", f"{s.name}_end"
    start, stop = f"T.max({s.lo}{less}, 0)", f"T.min({s.end}{less}, {length})"
    some = f"({start} < {stop})"
    when = f"({s.when}) & {some}" if s.when != "T.bool(True)" else some
    ended = f"choose({when}, T.ceildiv({stop}, {block}), T.int32(0))"
    return [
        (end, f'T.Cast("int32", {ended})'),
        (lo, f'T.min(T.Cast("int32", T.truncdiv({start}, {block})), {end})'),
    ]
