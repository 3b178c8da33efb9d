"""Tile conditions against the enumeration of every pair of every tile."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncompiler.ir.expr import Call, Const, Expr, Index, Load, Param, Size
from attncompiler.ir.tiles import CORNERS, tile_class
from tests.tile_rates import rates

q, k, h = Index("q"), Index("k"), Index("h")


def op(name: str, *args: Expr | int) -> Expr:
    return Call(name, tuple(Const(a) if isinstance(a, int) else a for a in args))


def both(*conditions: Expr) -> Expr:
    return (
        conditions[0] if len(conditions) == 1 else op("and", conditions[0], both(*conditions[1:]))
    )


def either(x: Expr, y: Expr) -> Expr:
    return op("or", x, y)


def clamp(x: Expr, low: Expr | int, high: Expr | int) -> Expr:
    return op("max", op("min", x, high), low)


w = Param("w", "int")
causal = op("le", k, q)
window = op("lt", op("sub", q, k), w)
distance = op("sub", op("floordiv", q, 4), op("floordiv", k, 4))


def neighborhood(x: Expr, y: Expr, extent: Expr | int, size: int, stride: int = 1) -> Expr:
    leader = op(
        "min",
        op("add", op("mul", op("floordiv", x, stride), stride), stride // 2),
        op("sub", extent, 1),
    )
    start = clamp(op("sub", leader, size // 2), 0, op("sub", extent, size))
    return both(op("ge", y, start), op("lt", y, op("add", start, size)))


def grid(size: int, window_size: int) -> Expr:
    rows, columns = (
        neighborhood(op("floordiv", q, 8), op("floordiv", k, 8), 5, window_size),
        neighborhood(op("mod", q, 8), op("mod", k, 8), size, window_size),
    )
    return both(rows, columns)


W = {"w": 7}
EXACT = {
    "causal": (causal, {}),
    "causal, end aligned": (op("le", k, op("add", q, op("sub", Size("N"), Size("M")))), {}),
    "sliding window": (both(causal, window), W),
    "empty window": (both(causal, window), {"w": 0}),
    "window written the other way": (both(op("ge", q, k), op("gt", k, op("sub", q, w))), W),
    "infinite window": (both(causal, window), {"w": 2**63 - 1}),
    "negative infinite window": (both(causal, window), {"w": -(2**63) + 100}),
    "two-sided window": (op("le", op("abs", op("sub", q, k)), w), W),
    "sink and window": (both(causal, either(op("lt", k, 6), window)), W),
    "prefix": (either(causal, op("lt", k, w)), W),
    "chunked": (op("eq", op("floordiv", q, 6), op("floordiv", k, 6)), {}),
    "chunked, size at run time": (op("eq", op("floordiv", q, w), op("floordiv", k, w)), W),
    "multiples of a run-time number": (op("eq", op("mod", k, w), 0), W),
    "multiples of zero": (op("eq", op("mod", k, w), 0), {"w": 0}),
    "chunked causal": (both(causal, op("eq", op("floordiv", q, 6), op("floordiv", k, 6))), {}),
    "block causal": (op("le", op("floordiv", k, 5), op("floordiv", q, 5)), {}),
    "halo": (
        both(
            op("ge", k, op("sub", op("mul", op("floordiv", q, 4), 4), 3)),
            op("lt", k, op("add", op("mul", op("floordiv", q, 4), 4), 7)),
        ),
        {},
    ),
    "neighborhood": (neighborhood(q, k, Size("N"), 9), {}),
    "neighborhood with stride": (neighborhood(q, k, Size("N"), 9, 4), {}),
    "dilated": (op("eq", op("mod", op("sub", q, k), 3), 0), {}),
    "dilated by residues": (op("eq", op("mod", q, 3), op("mod", k, 3)), {}),
    "dilated window": (both(causal, window, op("eq", op("mod", op("sub", q, k), 3), 0)), W),
    "power of two": (op("eq", op("bitand", distance, op("sub", distance, 1)), 0), {}),
    "power of two, causal": (
        both(op("gt", distance, 0), op("eq", op("bitand", distance, op("sub", distance, 1)), 0)),
        {},
    ),
    "all": (Const(True), {}),
    "none": (Const(False), {}),
    "switch": (either(Param("on", "bool"), causal), {"on": True}),
    "switch off": (either(Param("on", "bool"), causal), {"on": False}),
    "length of the batch": (op("lt", k, Load("n", (Index("b"),), "int")), {}),
    "float window": (op("lt", op("to_float", op("sub", q, k)), Param("f", "float")), {"f": 6.5}),
    "infinite float window": (
        op("lt", op("to_float", op("sub", q, k)), Param("f", "float")),
        {"f": float("inf")},
    ),
    "NaN float window": (
        op("not", op("lt", op("to_float", op("sub", q, k)), Param("f", "float"))),
        {"f": float("nan")},
    ),
    "causal in even heads": (either(op("eq", h, 1), causal), {}),
}


@pytest.mark.parametrize("name", EXACT)
def test_every_empty_and_full_tile_is_recognised(name: str) -> None:
    mask, params = EXACT[name]
    found = rates(mask, params)
    assert (found.missed_empty, found.missed_full) == (0, 0), found


INEXACT = {
    "grid neighborhood": (grid(8, 3), {}, 0.15),
    "per-head span": (both(causal, op("lt", op("sub", q, k), Load("span", (h,), "int"))), {}, 1.0),
    "power of two or near": (
        both(causal, either(window, op("eq", op("bitand", distance, op("sub", distance, 1)), 0))),
        W,
        0.05,
    ),
    "blocks listed in a table": (
        op("ne", Load("t", (op("floordiv", k, 16), op("floordiv", q, 8)), "int"), 0),
        {},
        0.01,
    ),
    "blocks of two states": (
        either(
            op("eq", Load("t", (op("floordiv", k, 16),), "int"), 5),
            both(op("eq", Load("t", (op("floordiv", k, 16),), "int"), 9), causal),
        ),
        {},
        0.01,
    ),
    "blocks of a table of truths": (Load("t", (op("floordiv", k, 16), h), "bool"), {}, 0.25),
    "window halving with the distance": (
        op("le", op("mod", k, 4), op("shr", w, op("bit_length", op("abs", distance)))),
        W,
        0.25,
    ),
    "modulus growing with the distance": (
        op(
            "eq", op("mod", op("abs", distance), op("max", op("shl", 1, op("abs", distance)), 1)), 0
        ),
        {},
        1.0,
    ),
    "nested choice": (
        Call("where", (op("lt", q, 20), causal, op("eq", op("mod", k, 2), 0))),
        {},
        0.05,
    ),
}


@pytest.mark.parametrize("name", INEXACT)
def test_other_masks_are_sound_and_miss_little(name: str) -> None:
    mask, params, share = INEXACT[name]
    found = rates(mask, params)
    assert found.missed_empty <= share * found.empty + 1, found
    assert found.missed_full <= share * found.full + 1, found


def test_the_conditions_are_short() -> None:
    found = tile_class(both(causal, window))
    (q_lo, q_hi), (k_lo, k_hi) = CORNERS["q"], CORNERS["k"]
    assert found.certain is both(op("ge", q_lo, k_hi), op("lt", op("sub", q_hi, k_lo), w))
    possible = both(op("ge", q_hi, k_lo), op("lt", op("sub", q_lo, k_hi), w))
    assert found.possible is op("and", possible, op("gt", w, 0))


integers = st.recursive(
    st.one_of(st.sampled_from([q, k, h, w, Size("N")]), st.integers(-9, 60).map(Const)),
    lambda inner: st.one_of(
        st.builds(
            op,
            st.sampled_from(["add", "sub", "mul", "min", "max", "bitand", "bitor", "bitxor"]),
            inner,
            inner,
        ),
        st.builds(op, st.sampled_from(["floordiv", "mod"]), inner, st.integers(1, 9).map(Const)),
        st.builds(lambda x, y: op("mod", x, op("max", y, 1)), inner, inner),
        st.builds(
            lambda o, x, y: op(o, x, op("mod", y, 6)), st.sampled_from(["shl", "shr"]), inner, inner
        ),
        st.builds(op, st.sampled_from(["neg", "abs", "sign", "bit_length"]), inner),
        st.builds(lambda x, y, z: op("where", op("lt", x, y), z, x), inner, inner, inner),
        st.builds(lambda x: Load("t", (x,), "int"), inner),
    ),
    max_leaves=5,
)
comparisons = st.builds(
    op, st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), integers, integers
)
masks = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds(op, st.sampled_from(["and", "or", "eq", "ne"]), inner, inner),
        st.builds(op, st.just("not"), inner),
        st.builds(op, st.just("where"), inner, inner, inner),
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(-20, 50))
def test_conditions_of_random_masks_are_sound(mask: Expr, value: int) -> None:
    rates(mask, {"w": value})
