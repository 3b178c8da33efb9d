"""The walk over the tiles of several spans: every tile that some span meets, once, and which of them are masked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from attncompiler.backends.tilelang_tiles import run_loops
from attncompiler.backends.triton_loops import RunsText, SpanText

# What the printed lines call, on numbers.
T = SimpleNamespace(
    min=min,
    max=max,
    ceildiv=lambda x, y: -(-x // y),
    truncdiv=lambda x, y: int(x / y),
    Cast=lambda dtype, x: int(x),
    int32=int,
    bool=bool,
)


def choose(condition: Any, yes: Any, no: Any) -> Any:
    return yes if condition else no


def spans(name: str, found: list[tuple[bool, int, int]]) -> list[SpanText]:
    return [
        SpanText(f"{name}{n}", f"T.bool({when})", f"({lo})", f"({end})")
        for n, (when, lo, end) in enumerate(found)
    ]


ENDS = st.lists(
    st.tuples(st.booleans() | st.just(True), st.integers(-30, 140), st.integers(-30, 140)),
    min_size=1,
    max_size=3,
)


@given(allowed=ENDS, forbidden=ENDS, length=st.integers(1, 110), block=st.sampled_from([1, 7, 16]))
def test_a_walk_visits_each_tile_once(
    allowed: list[tuple[bool, int, int]],
    forbidden: list[tuple[bool, int, int]],
    length: int,
    block: int,
) -> None:
    runs = RunsText(spans("allowed", allowed), spans("forbidden", forbidden), [])
    found = run_loops(runs, str(block), str(length))
    known: dict[str, Any] = {"T": T, "choose": choose, "whole": length // block}
    for name, code in found.lets:
        known[name] = eval(code, known)

    def touched(ends: list[tuple[bool, int, int]]) -> set[int]:
        return {
            tile
            for when, lo, end in ends
            if when
            for key in range(max(lo, 0), min(end, length))
            for tile in (key // block,)
        }

    steps = eval(found.count, known)
    visited = [eval(found.tile, known | {"at": at}) for at in range(steps)]
    assert len(visited) == len(set(visited))
    assert set(visited) == touched(allowed)
    broken = {t for t in visited if eval(found.broken, known | {"tile": t})}
    assert broken == {t for t in visited if t in touched(forbidden) or t >= length // block}
