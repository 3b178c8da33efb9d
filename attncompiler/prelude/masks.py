"""Masks of the literature, written in the DSL: each turns ``at`` and its numbers or tensors into "may q read k".

Positions count tokens; ``at.q`` includes ``q_start``. Combine masks with ``&``, ``|`` and ``~``. Divisors and moduli
given as plain numbers or constants keep block sparsity exact; parameters work too.
"""

from __future__ import annotations

from attncompiler.caller import user_location
from attncompiler.errors import ArgumentsError
from attncompiler.functions import Value, bit_length, is_pow2, maximum, minimum
from attncompiler.prelude.limits import at_least


def causal(at: Value) -> Value:
    """Keys up to and including the query's own position: k <= q."""
    return at.k <= at.q


def sliding_window(at: Value, window: Value) -> Value:
    """Keys nearer than ``window`` positions on both sides: abs(q - k) < window.

    Together with ``causal`` it is the window of Mistral 7B (arXiv:2310.06825) and Gemma: the last ``window`` keys.
    """
    at_least(0, "sliding_window", window=window)
    return (at.q - at.k < window) & (at.k - at.q < window)


def prefix_lm(at: Value, prefix: Value) -> Value:
    """Causal, with the first ``prefix`` keys readable by all (prefix language model, arXiv:1910.10683)."""
    at_least(0, "prefix_lm", prefix=prefix)
    return (at.k <= at.q) | (at.k < prefix)


def document(at: Value, ids: Value) -> Value:
    """Pairs of one document: ids[q] == ids[k], for packed sequences.

    ``ids`` is an int tensor over ``"k"`` or ``("b", "k")``; the query's position indexes the same table.
    """
    if len(ids.axes) == 2:
        return ids[at.b, at.q] == ids[at.b, at.k]
    return ids[at.q] == ids[at.k]


def dilated(at: Value, window: Value, dilation: Value) -> Value:
    """Every ``dilation``-th of the last keys, ``window`` of them (LongNet, arXiv:2307.02486).

    k <= q, (q - k) mod dilation = 0, q - k < window * dilation.
    """
    at_least(0, "dilated", window=window)
    at_least(1, "dilated", dilation=dilation)
    distance = at.q - at.k
    return (distance >= 0) & (distance % dilation == 0) & (distance < window * dilation)


def sink_window(at: Value, sink: Value, window: Value) -> Value:
    """Causal: the first ``sink`` keys and the last ``window`` ones (StreamingLLM, arXiv:2309.17453)."""
    at_least(0, "sink_window", sink=sink, window=window)
    return (at.k <= at.q) & ((at.k < sink) | (at.q - at.k < window))


def chunked(at: Value, chunk: Value) -> Value:
    """Pairs of one chunk of ``chunk`` positions: q // chunk == k // chunk (with ``causal``: Llama 4's local layers)."""
    at_least(1, "chunked", chunk=chunk)
    return at.q // chunk == at.k // chunk


def block_causal(at: Value, block: Value) -> Value:
    """Causal between blocks, full inside a block: k // block <= q // block (block diffusion, arXiv:2503.09573)."""
    at_least(1, "block_causal", block=block)
    return at.k // block <= at.q // block


def shifted_chunks(at: Value, group: Value, shift: Value) -> Value:
    """Causal groups of ``group`` positions moved by ``shift``: the half-shifted heads of LongLoRA (arXiv:2309.12307).

    ``shift`` is a number or a value a head, such as ``self.shift[at.h]`` with 0 or group // 2.
    """
    at_least(1, "shifted_chunks", group=group)
    return (at.k <= at.q) & ((at.q + shift) // group == (at.k + shift) // group)


def power_of_two(at: Value, block: Value, window: Value = 1, sink: Value = 1) -> Value:
    """Causal: blocks at distance 0, 1, 2, 4, 8 ..., the last ``window`` and the first ``sink`` blocks (PowerAttention).

    ``block`` is in positions, ``window`` and ``sink`` in blocks (arXiv:2503.03588).
    """
    at_least(1, "power_of_two", block=block)
    at_least(0, "power_of_two", window=window, sink=sink)
    i, j = at.q // block, at.k // block
    distance = i - j
    return (at.k <= at.q) & (is_pow2(distance) | (distance < window) | (j < sink))


def global_window(at: Value, global_tokens: Value, window: Value) -> Value:
    """The first ``global_tokens`` positions read all and are read by all, others see a window (arXiv:2004.05150)."""
    at_least(0, "global_window", global_tokens=global_tokens, window=window)
    return (at.k < global_tokens) | (at.q < global_tokens) | sliding_window(at, window)


def next_scale(at: Value, levels: Value) -> Value:
    """Keys of the query's own scale and coarser ones: levels[k] <= levels[q] (VAR, arXiv:2404.02905).

    ``levels`` is a nondecreasing int tensor over ``"k"``.
    """
    return levels[at.k] <= levels[at.q]


def tree(at: Value, last_descendant: Value) -> Value:
    """Ancestors of a node in a token tree laid out depth first: k <= q < last_descendant[k] (speculative decoding).

    ``last_descendant`` is an int tensor over ``"k"``: the position after the subtree of each node.
    """
    return (at.k <= at.q) & (at.q < last_descendant[at.k])


def halo(at: Value, block: Value, halo: Value) -> Value:
    """The query's block of ``block`` positions and ``halo`` more on each side (HaloNet, arXiv:2103.12731)."""
    at_least(1, "halo", block=block)
    at_least(0, "halo", halo=halo)
    start = at.q // block * block
    return (at.k >= start - halo) & (at.k < start + block + halo)


def coords(position: Value, grid: Value) -> tuple[Value, ...]:
    """The coordinates of a position in a row-major grid: ``t, y, x = coords(at.q, (T, H, W))``.

    ``grid`` is a tuple of axis lengths. The first coordinate of a position behind the grid is beyond its axis.
    """
    found: list[Value] = []
    for axis in reversed(range(len(grid))):
        found.append(position if axis == 0 else position % grid[axis])
        if axis:
            position = position // grid[axis]
    return tuple(reversed(found))


def neighborhood(
    at: Value,
    window: Value,
    grid: Value = None,
    stride: Value = 1,
    dilation: Value = 1,
    is_causal: Value = False,
) -> Value:
    """Neighborhood attention in 1, 2 or 3 dimensions: the window never shrinks at a border, it moves inward.

    ``grid`` is the tuple of axis lengths of a row-major layout, (T, H, W) or (H, W) or (L,); None is one axis over
    all keys. ``window`` (at most the axis length), ``stride``, ``dilation`` and ``is_causal`` are one value for all
    axes or a tuple, one an axis. Queries in a stride group share the window of its leader; dilation splits an axis
    into interleaved groups. NAT (arXiv:2204.07143), DiNAT (arXiv:2209.15001), generalized strides (arXiv:2504.16922).
    """
    lengths = (
        (at.N,) if grid is None else tuple(grid) if isinstance(grid, (tuple, list)) else (grid,)
    )
    rank = len(lengths)
    queries, keys = coords(at.q, lengths), coords(at.k, lengths)
    windows, strides = _per_axis(window, rank), _per_axis(stride, rank)
    dilations, causals = _per_axis(dilation, rank), _per_axis(is_causal, rank)
    allowed: Value = True
    for axis in reversed(range(rank)):
        length, q, k = lengths[axis], queries[axis], keys[axis]
        at_least(
            1, "neighborhood", window=windows[axis], stride=strides[axis], dilation=dilations[axis]
        )
        if isinstance(length, int) and isinstance(windows[axis], int) and windows[axis] > length:
            raise ArgumentsError(
                location=user_location(),
                name="neighborhood",
                detail=f"a window of {windows[axis]} does not fit into an axis of {length}",
                fix="windows are at most as long as their axis of the grid",
            )
        near = _near(q, k, length, windows[axis], strides[axis], dilations[axis], causals[axis])
        allowed = near if allowed is True else near & allowed
    return allowed


def _per_axis(value: Value, rank: int) -> tuple[Value, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if len(values) != rank:
        raise ArgumentsError(
            location=user_location(),
            name="neighborhood",
            detail=f"expected one value or {rank}, one an axis, got {len(values)}",
            fix="give window, stride, dilation and is_causal as many values as grid=... has axes",
        )
    return values


def _near(
    q: Value, k: Value, length: Value, window: Value, stride: Value, dilation: Value, causal: bool
) -> Value:
    """Whether ``k`` lies in the window of ``q`` along one axis."""
    same = True
    if not (isinstance(dilation, int) and dilation == 1):
        same = q % dilation == k % dilation
        length = (length - q % dilation + dilation - 1) // dilation
        q, k = q // dilation, k // dilation
    single = isinstance(stride, int) and stride == 1
    left, right = window // 2, window // 2 + window % 2 - 1
    if causal:
        leader = q if single else minimum(q // stride * stride + stride - 1, length - 1)
        inside = (k >= leader - left - right) & (k <= q)
    else:
        leader = q if single else minimum(q // stride * stride + stride // 2, length - 1)
        start = maximum(minimum(leader - left, length - window), 0)
        inside = (k >= start) & (k < start + window)
    return inside if same is True else same & inside


def radial(at: Value, frame: Value, width: Value) -> Value:
    """Video tokens: full between neighbouring frames, then a band that halves each time the distance doubles.

    ``frame`` is the number of tokens of a frame, ``width`` the band of frames two apart; all read the first frame
    (Radial Attention, arXiv:2506.19852, before its rounding to blocks).
    """
    at_least(1, "radial", frame=frame)
    at_least(0, "radial", width=width)
    distance = abs(at.q // frame - at.k // frame)
    band = width >> bit_length(distance)
    return (distance <= 1) | (at.k < frame) | (abs(at.q % frame - at.k % frame) <= band)
