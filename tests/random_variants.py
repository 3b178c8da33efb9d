"""Variants put together from pieces: every slot with every kind of read, for tests of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from attncompiler.dsl import (
    Tensor,
    Variant,
    causal,
    clamp,
    cog,
    document,
    exp,
    log,
    maximum,
    minimum,
    relu,
    sigmoid,
    sink_softmax,
    sliding_window,
    softmax,
    softplus,
    sqrt,
    square,
    tanh,
    where,
)

Piece = Callable[..., Any]


class Parts(Variant):
    """What the pieces read; a variant ignores what its pieces do not."""

    cap: float = 3.0
    window: int = 9
    gain = Tensor(low=0.5, high=1.5)
    slope = Tensor("h", low=0.1, high=0.6)
    bias = Tensor("h", "k")
    pair = Tensor("b", "h", "q", "k")
    table = Tensor("h", 7)
    temperature = Tensor("b", "h", "q", low=0.5, high=1.5)
    gate = Tensor("b", "q", "d")
    feature = Tensor("h", "d")
    group = Tensor("g", 3)
    ids = Tensor("b", "k", dtype="int", high=2)


# Each takes the variant, a score and the position, and gives another score.
SCORES: tuple[Piece, ...] = (
    lambda v, s, at: s + v.bias[at.h, at.k],
    lambda v, s, at: s * v.slope[at.h] + v.pair[at.b, at.h, at.q, at.k],
    lambda v, s, at: v.cap * tanh(s / v.cap),
    lambda v, s, at: s + v.table[at.h, clamp(at.q - at.k, -3, 3) + 3],
    lambda v, s, at: where(at.k % 3 == 0, s * v.gain, s),
    lambda v, s, at: s * v.temperature[at.b, at.h, at.q],
    lambda v, s, at: s + v.bias[at.h, at.k] * v.bias[at.h, at.q % at.N],
    lambda v, s, at: abs(s) - v.group[at.g, at.k % 3],
    lambda v, s, at: s + v.table[at.h, (at.q + 2 * at.k) % 7] * v.gain,
    lambda v, s, at: s - v.slope[at.h] * abs(at.q - at.k),
    lambda v, s, at: minimum(s, v.bias[at.h, at.k] + 2),
    lambda v, s, at: softplus(s) * v.gain,
    lambda v, s, at: s * sigmoid(s + v.table[at.h, at.b]),
    lambda v, s, at: where(v.pair[at.b, at.h, at.q, at.k] > 0, s, s * 0.5),
)

# Each takes the variant and the position.
MASKS: tuple[Piece, ...] = (
    lambda v, at: causal(at),
    lambda v, at: (at.q * 3 + at.k * 7) % 5 != 0,
    lambda v, at: sliding_window(at, v.window),
    lambda v, at: at.k + 4 <= at.q,
    lambda v, at: document(at, v.ids) & causal(at),
    lambda v, at: v.bias[at.h, at.k] > -0.7,
)


def _mixture(v: Any, s: Any, row: Any) -> Any:
    m = row.max(s)
    first, second = exp(s - m), exp(0.5 * (s - m))
    return first / row.sum(first) - v.gain * second / row.sum(second)


def _standardized(v: Any, s: Any, row: Any) -> Any:
    mean = row.mean(s)
    return softmax((s - mean) / sqrt(row.mean(square(s - mean)) + v.gain), row)


def _kept(v: Any, s: Any, row: Any) -> Any:
    p = softmax(s, row)
    row.keep("lowest", row.min(s * v.slope[row.h]))
    row.keep("mass", row.sum(where(row.k % 2 == 0, p, 0.0)))
    return p


# Each takes the variant, the score and the row.
NORMALIZERS: tuple[Piece, ...] = (
    lambda v, s, row: softmax(s, row),
    lambda v, s, row: sink_softmax(s, row, v.slope[row.h]),
    lambda v, s, row: sigmoid(s + v.bias[row.h, row.k]),
    lambda v, s, row: relu(s) * relu(s) / (row.sum(relu(s) * relu(s)) + 0.1),
    lambda v, s, row: cog(s, row),
    lambda v, s, row: v.gain * softmax(s, row) + v.slope[row.h] / row.count(),
    lambda v, s, row: relu(softmax(s, row) - 0.02),
    _mixture,
    _standardized,
    _kept,
    lambda v, s, row: softmax(s, row) * v.temperature[row.b, row.h, row.q] * v.bias[row.h, row.k],
    lambda v, s, row: s / maximum(row.max(abs(s)), 1.0),
    lambda v, s, row: exp(s - row.max(s)),
    lambda v, s, row: (s - row.min(s)) / (row.max(s) - row.min(s) + 1.0),
    lambda v, s, row: softmax(s * log(row.count() + 1.0), row),
)

# Each takes the variant, an element of the output row and its place.
OUTPUTS: tuple[Piece, ...] = (
    lambda v, o, at: o,
    lambda v, o, at: o * sigmoid(v.gate[at.b, at.q, at.d]),
    lambda v, o, at: o / sqrt(at.mean(o * o) + 0.1) * v.feature[at.h, at.d],
    lambda v, o, at: o + v.feature[at.h, at.d] * v.slope[at.h],
    lambda v, o, at: tanh(o) - 0.5 * at.max(o),
)


def variant(scores: Sequence[Piece], mask: Piece | None, normalize: Piece, output: Piece) -> Parts:
    """A variant with these pieces; the scores are applied one after the other."""

    def score(self: Parts, s: Any, at: Any) -> Any:
        for piece in scores:
            s = piece(self, s, at)
        return s

    slots: dict[str, Any] = {
        "score": score,
        "normalize": lambda self, s, row: normalize(self, s, row),
        "output": lambda self, o, at: output(self, o, at),
    }
    if mask is not None:
        slots["mask"] = lambda self, at: mask(self, at)
    made: Parts = type("Drawn", (Parts,), slots)()
    return made


def cycled(number: int) -> Parts:
    """One of a series in which each piece comes up: its length is that of the longest tuple of pieces."""
    scores = [SCORES[number % len(SCORES)], SCORES[(3 * number + 1) % len(SCORES)]]
    return variant(
        scores,
        (None, *MASKS)[number % (len(MASKS) + 1)],
        NORMALIZERS[number % len(NORMALIZERS)],
        OUTPUTS[number % len(OUTPUTS)],
    )


variants = st.builds(
    variant,
    st.lists(st.sampled_from(SCORES), max_size=3),
    st.one_of(st.none(), st.sampled_from(MASKS)),
    st.sampled_from(NORMALIZERS),
    st.sampled_from(OUTPUTS),
)
