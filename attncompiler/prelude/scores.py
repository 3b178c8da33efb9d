"""Score terms of the literature, written in the DSL: each turns a score into the changed score."""

from __future__ import annotations

import math

from attncompiler.functions import Value, clamp, tanh


def soft_cap(s: Value, cap: Value) -> Value:
    """cap * tanh(s / cap): scores limited to (-cap, cap) (Gemma 2, arXiv:2408.00118)."""
    return cap * tanh(s / cap)


def alibi(s: Value, at: Value, slopes: Value) -> Value:
    """The score minus slopes[h] * abs(q - k): a linear penalty on distance (ALiBi, arXiv:2108.12409).

    ``slopes`` is a tensor over ``"h"``; ``alibi_slopes`` gives the paper's.
    """
    return s - slopes[at.h] * abs(at.q - at.k)


def alibi_slopes(heads: int) -> list[float]:
    """The slopes of ALiBi: 2**(-8 i / heads), i = 1 .. heads, for a power of two.

    Other head counts take the slopes of the next smaller power of two and every other slope of the next larger one,
    as the paper's code does. Make it a tensor with ``torch.tensor(alibi_slopes(H))``.
    """
    whole = 2 ** int(math.log2(heads)) if heads else 1
    first = [2.0 ** (-8.0 * (i + 1) / whole) for i in range(min(whole, heads))]
    between = [2.0 ** (-4.0 * (i + 1) / whole) for i in range(2 * whole)]
    return first + between[0::2][: heads - whole]


def relative_table(s: Value, at: Value, table: Value, max_distance: Value) -> Value:
    """The score plus table[h, clamp(q - k, -r, r) + r] with r = max_distance: a learned bias a distance.

    ``table`` is a tensor over ``"h"`` and 2 * max_distance + 1 distances (Shaw et al., arXiv:1803.02155, as scalars).
    """
    distance = clamp(at.q - at.k, -max_distance, max_distance)
    return s + table[at.h, distance + max_distance]
