"""Conditions that are called exact, and spans, against the enumeration of all pairs for many lengths and values."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncompiler.ir.expr import Const, Expr, Index, Load, Param, walk
from attncompiler.ir.printer import print_expression
from attncompiler.ir.spans import Span
from attncompiler.ir.tiles import tile_class, tile_set
from tests.test_ir_tiles import (
    EXACT,
    INEXACT,
    both,
    causal,
    distance,
    either,
    masks,
    op,
    window,
)
from tests.tile_enumeration import Pairs
from tests.tile_rates import rates

q, k, h, w = Index("q"), Index("k"), Index("h"), Param("w", "int")
on = Param("on", "bool")
KNOWN = {name: mask for name, (mask, *_) in {**EXACT, **INEXACT}.items()}
NOT_PROVED = {
    "chunked, size at run time": "q // w divides by a number that is known only at run time",
    "multiples of a run-time number": "k % w divides by a number that is known only at run time",
    "multiples of zero": "k % w divides by a number that is known only at run time",
    "float window": "to_float(q - k) < f compares or converts floating-point numbers",
    "infinite float window": "to_float(q - k) < f compares or converts floating-point numbers",
    "NaN float window": "to_float(q - k) < f compares or converts floating-point numbers",
    "per-head span": "span[h] is read from a tensor for each query, key or head",
    "blocks listed in a table": "t[k // 16, q // 8] is read from a tensor for each query, key or head",
    "blocks of two states": "t[k // 16] is read from a tensor for each query, key or head",
    "blocks of a table of truths": "t[k // 16, h] is read from a tensor for each query, key or head",
    "window halving with the distance": "w >> bit_length(abs(q // 4 - k // 4)) shifts by an amount "
    "that is not a literal",
    "modulus growing with the distance": "abs(q // 4 - k // 4) % max(1 << abs(q // 4 - k // 4), 1) "
    "divides by a number that is known only at run time",
}


@pytest.mark.parametrize("name", KNOWN)
def test_conditions_are_proved_or_say_why_not(name: str) -> None:
    found = tile_set(KNOWN[name])
    assert (found.exact, found.reason) == (name not in NOT_PROVED, NOT_PROVED.get(name, ""))
    assert found.no_spans or (found.keys is not None and found.queries is not None)


REFUSED = {
    "bits": (op("eq", op("bitand", q, k), 0), "q & k works on single bits"),
    "product": (op("lt", op("mul", q, k), w), "q * k multiplies positions by a number"),
    "run-time factor": (op("lt", op("mul", q, w), k), "q * w multiplies positions by a number"),
    "shift": (op("lt", op("shl", q, w), k), "q << w shifts by an amount that is not a literal"),
    "other power": (
        both(
            op("eq", op("bitand", q, op("sub", q, 1)), 0),
            op("eq", op("bitand", k, op("sub", k, 1)), 0),
        ),
        "is tested for a power of two, as another number is",
    ),
    "no bound": (
        op("lt", op("bit_length", op("add", q, w)), k),
        "w has no bound that is known before the call",
    ),
    "large numbers": (op("lt", op("mul", q, 2**41), k), "the numbers in its conditions are too"),
    "too many pieces": (
        op("lt", op("bit_length", q), op("mod", op("bit_length", op("add", q, k)), 7)),
        "the sets of its pairs have too many pieces",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_part_and_leaves_the_intervals(name: str) -> None:
    mask, reason = REFUSED[name]
    found, plain = tile_set(mask), tile_class(mask)
    assert not found.exact
    assert reason in found.reason
    assert (found.possible, found.certain) == (plain.possible, plain.certain)
    assert found.keys is found.queries is None
    rates(mask, {"w": 3})


def spelled(spans: tuple[Span, ...] | None) -> list[str]:
    assert spans is not None
    found = []
    for s in spans:
        text = f"[{print_expression(s.lo)}, {print_expression(s.end)})"
        text += "" if s.step == 1 else f" step {s.step}"
        found.append(text + ("" if s.when is Const(True) else f" if {print_expression(s.when)}"))
    return found


SPANS = {
    "causal": (["[0, q_hi + 1)"], ["[k_lo, q_start + M)"]),
    "sliding window": (
        ["[max(q_lo - w + 1, 0), q_hi + 1) if w > 0"],
        ["[k_lo, w + k_hi) if w > 0"],
    ),
    "sink and window": (
        ["[0, min(q_hi + 1, 6))", "[max(q_lo - w + 1, 0), q_hi + 1) if w > 0"],
        ["[k_lo, q_start + M) if k_lo <= 5", "[k_lo, w + k_hi) if w > 0"],
    ),
    "prefix": (
        ["[0, w)", "[0, q_hi + 1)"],
        ["[0, q_start + M) if w > k_lo", "[k_lo, q_start + M)"],
    ),
    "chunked": (
        ["[q_lo // 6 * 6, q_hi // 6 * 6 + 6)"],
        ["[k_lo // 6 * 6, k_hi // 6 * 6 + 6)"],
    ),
    "switch": (
        ["[0, q_hi + 1)", "[0, N) if on"],
        ["[0, q_start + M) if on", "[k_lo, q_start + M)"],
    ),
    "length of the batch": (["[0, n[b])"], ["[0, q_start + M) if n[b] > k_lo"]),
    "all": (["[0, N)"], ["[0, q_start + M)"]),
    "none": ([], []),
}


@pytest.mark.parametrize("name", SPANS)
def test_spans_are_what_one_would_write(name: str) -> None:
    found = tile_set(KNOWN[name])
    assert (spelled(found.keys), spelled(found.queries)) == SPANS[name]


def test_holes_at_equal_distances_are_a_step() -> None:
    strided = op("eq", op("mod", k, 4), 1)
    spans = tile_set(both(causal, strided)).keys
    assert spelled(spans) == ["[1, (q_hi + 3) // 4 * 4 - 2) step 4 if q_hi > 0"]


ENUMERABLE = [
    mask
    for mask in KNOWN.values()
    if h not in set(walk(mask))
    and not any(isinstance(n, Load) for n in walk(mask))
    and not any(isinstance(n, Param) and n.kind == "float" for n in walk(mask))
]
LENGTHS = st.sampled_from([1, 5, 31, 64, 100, 129, 257, 512])
TILES = st.sampled_from([1, 2, 3, 8, 16, 17, 64, 100])
ENUMERABLE += [
    both(op("ge", op("sub", q, k), 0), op("le", op("sub", q, k), op("floordiv", w, 2))),
    op("eq", op("mod", k, 4), 1),
    both(causal, op("eq", op("mod", k, 5), 2)),
    either(op("eq", op("mod", op("sub", q, k), 7), 0), window),
    op("lt", k, op("where", on, q, w)),
    op("le", op("abs", op("sub", op("mul", q, 2), k)), 9),
    op("le", op("add", op("floordiv", q, 3), op("floordiv", k, 5)), 20),
    both(causal, op("lt", distance, op("bit_length", q))),
]


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(ENUMERABLE),
    LENGTHS,
    LENGTHS,
    TILES,
    TILES,
    st.integers(0, 70),
    st.one_of(st.integers(-10, 300), st.sampled_from([2**63 - 1, -(2**62), -(2**63), 2**41])),
    st.booleans(),
)
def test_exact_conditions_and_spans_are_what_enumeration_says(
    mask: Expr, m: int, n: int, rows: int, columns: int, start: int, value: int, flag: bool
) -> None:
    pairs = Pairs(mask, (m, n), start, {"w": value, "on": flag})
    missed = pairs.check_tiles(rows, columns)
    assert not (tile_set(mask).exact and pairs.small) or missed == (0, 0)
    axes: tuple[Literal["q", "k"], ...] = ("q", "k")
    for axis in axes:
        pairs.check_spans(axis, rows if axis == "k" else columns)


@settings(max_examples=150, deadline=None)
@given(masks, st.integers(-20, 50))
def test_random_masks_that_are_called_exact_are(mask: Expr, value: int) -> None:
    if tile_set(mask).exact:
        rates(mask, {"w": value})  # fails when a tile is missed
    if h not in set(walk(mask)) and not any(isinstance(n, Load) for n in walk(mask)):
        pairs = Pairs(mask, (40, 48), 3, {"w": value})
        pairs.check_spans("k", 8)
        pairs.check_spans("q", 8)
