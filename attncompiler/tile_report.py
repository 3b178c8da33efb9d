"""Turns one fine tile map into advice: what every tile shape gains, which is best, whether the sparsity is worth it.

The bound of Generalized Neighborhood Attention's simulator (arXiv:2504.16922), for any mask: a kernel that skips whole
tiles does the work of all pairs in tiles that are not empty, so all pairs over visited pairs is the most a tile shape
can gain, and all over allowed pairs the most that any shape can.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from attncompiler.tile_map import EMPTY, FULL, PARTIAL, TileMap

SIZES = (16, 32, 64, 128, 256)
# Larger tiles cost less for each pair, so the largest shape this close to the best speed-up is the one to take.
_CLOSE = 0.95
# Below this a speed-up is lost in what skipping itself costs.
_GAIN = 1.1


@dataclass(frozen=True)
class Shapes:
    """One mask under several tile shapes: ``maps`` by (rows, columns), ``best`` is one of them."""

    maps: dict[tuple[int, int], TileMap]
    best: TileMap


def compare_shapes(finest: TileMap, sizes: Sequence[int] = SIZES) -> Shapes:
    """The maps of all shapes with sides among ``sizes``, merged from one map whose tiles divide them.

    Sides that this map's tiles do not divide, and those for which a smaller side already holds all positions, are
    left out; when none is left, the map's own tile stands alone. ``best`` is the largest tile whose speed-up is within
    5% of the highest.
    """
    rows, columns = (
        [s for s, before in zip(sizes, (0, *sizes), strict=False) if s % own == 0 and before < n]
        or [own]
        for own, n in zip(finest.tile, finest.lengths, strict=True)
    )
    maps = {(r, c): finest.merged((r, c)) for r in rows for c in columns}
    enough = _CLOSE * max(m.tiling_speedup for m in maps.values())
    good = [m for m in maps.values() if m.tiling_speedup >= enough]
    best = max(good, key=lambda m: (math.prod(m.tile), m.tiling_speedup, m.tile))
    return Shapes(maps, best)


def verdict(tiles: TileMap, best: TileMap) -> str:
    """Whether the mask's sparsity is worth it with ``tiles``, in a sentence or two; ``best`` is another shape."""
    bound, reached, other = tiles.speedup_bound, tiles.tiling_speedup, best.tiling_speedup
    if tiles.density == 0:
        return "The mask allows no pair: there is nothing to compute."
    if tiles.density == 1:
        return "The mask allows every pair: there is nothing to skip."
    text = (
        f"No tiling can be more than {times(bound)} faster than dense; "
        f"{shape(tiles)} tiles reach {times(reached)}."
    )
    advice = f" {shape(best)} tiles reach {times(other)}." if other > reached / _CLOSE else ""
    if bound < _GAIN:
        return f"{text} Not worth it: so few pairs are forbidden that dense attention costs nearly the same."
    if max(reached, other) < _GAIN:
        return (
            f"{text} Not worth it as it is: the allowed pairs are scattered over all tiles. "
            "An order of positions that puts pairs side by side would help."
        )
    if reached < _GAIN:
        return f"{text} Not worth it with these tiles.{advice}"
    if reached >= 0.75 * bound:
        return f"{text} Worth it."
    forbidden = 1 - tiles.density / tiles.work
    return f"{text} Worth it in part: {forbidden:.0%} of the visited pairs are forbidden.{advice}"


def chapter(
    finest: TileMap, tile: tuple[int, int] | None = None, *, batch: int = 0, head: int = 0
) -> Iterator[str]:
    """The lines that ``explain`` shows of one batch and head, for ``tile`` (the map's own unless given)."""
    whole = finest if tile is None else finest.merged(tile)
    mine = whole.one(batch, head)
    queries, keys = mine.lengths
    where = f", queries from position {mine.q_start}" if mine.q_start else ""
    yield f"   {queries} queries and {keys} keys in tiles of {shape(mine)}{where}: . empty  + partial  # full"
    yield ""
    yield from (f"     {line}" for line in mine.text().splitlines())
    yield ""
    counts, visited, allowed = mine.counts, int(mine.visited), int(mine.allowed)
    partial = f", {int(mine.masked) / visited:.1%} of them in partial tiles" if visited else ""
    yield f"   tiles:   {counts[EMPTY]} empty, {counts[PARTIAL]} partial, {counts[FULL]} full"
    yield f"   allowed: {allowed} of {mine.pairs} pairs ({mine.density:.2%})"
    yield f"   visited: {visited} of {mine.pairs} pairs, a work ratio of {mine.work:.4f}{partial}"
    batches, heads = whole.states.shape[:2]
    if batches * heads > 1:
        yield (
            f"   This is {named('batch', batch, batches)}, {named('head', head, heads)}. All together: "
            f"{whole.density:.2%} allowed, {whole.work:.4f} visited, at most {times(whole.speedup_bound)}."
        )
    shapes = compare_shapes(finest.one(batch, head))
    yield from (f"   {line}" for line in textwrap.wrap(verdict(mine, shapes.best), 110))
    if 0 < mine.density < 1:
        yield ""
        yield from _table(shapes)


def times(ratio: float) -> str:
    """``1.98x``."""
    return f"{ratio:.2f}x"


def shape(tiles: TileMap) -> str:
    """``64x32``: queries by keys."""
    return f"{tiles.tile[0]}x{tiles.tile[1]}"


def named(axis: str, index: int, extent: int) -> str:
    """``head 1 of 4``, or ``any head`` where all are alike."""
    return f"any {axis}" if extent == 1 else f"{axis} {index} of {extent}"


def _table(shapes: Shapes) -> Iterator[str]:
    yield "   Speed-up over dense and work ratio of tiles of queries (down) by keys (across);"
    yield "   * is the largest tile within 5% of the best:"
    columns = sorted({c for _, c in shapes.maps})
    yield "     " + " " * 5 + "".join(f"{c:>15}" for c in columns)
    for r in sorted({r for r, _ in shapes.maps}):
        cells = []
        for c in columns:
            tiles = shapes.maps[r, c]
            star = "*" if tiles is shapes.best else " "
            cells.append(f"{times(tiles.tiling_speedup):>8}{tiles.work:6.2f}{star}")
        yield f"     {r:>5}{''.join(cells)}".rstrip()
