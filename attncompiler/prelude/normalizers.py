"""Normalizers of the literature, written in the DSL: each turns the scores of a row into its weights, as on paper.

``s`` is the score of one key, ``row`` gives reductions over the allowed keys of its row. Where a formula has an
exponential, the row's maximum is subtracted, which changes no weight. Nothing here is known to the compiler by name.
"""

from __future__ import annotations

from attncompiler.functions import Value, exp, log, maximum, relu, sigmoid, sign, where


def softmax(s: Value, row: Value) -> Value:
    """exp(s) / sum exp(s); keeps ``lse``, the natural log of the sum."""
    m = row.max(s)
    e = exp(s - m)
    total = row.sum(e)
    row.keep("lse", log(total) + m)
    return e / total


def sink_softmax(s: Value, row: Value, sink: Value) -> Value:
    """exp(s) / (exp(sink) + sum exp(s)): a learnable logit that takes weight and gives no value.

    ``sink`` is a number of the row, such as ``self.sink[row.h]`` (gpt-oss; arXiv:2309.17453). Keeps ``lse``.
    """
    m = maximum(row.max(s), sink)
    e = exp(s - m)
    total = row.sum(e) + exp(sink - m)
    row.keep("lse", log(total) + m)
    return e / total


def softmax_off_by_one(s: Value, row: Value) -> Value:
    """exp(s) / (1 + sum exp(s)): a row may give no weight to any key (softmax1). Keeps ``lse``."""
    return sink_softmax(s, row, 0.0)


def sigmoid_weights(s: Value, row: Value, bias: Value = 0.0) -> Value:
    """sigmoid(s + bias), no normalization; a bias of -log(n) starts near softmax (arXiv:2409.04431)."""
    return sigmoid(s + bias)


def relu_weights(s: Value, row: Value, scale: Value = 1.0) -> Value:
    """scale * max(s, 0), no normalization; scale = 1 / n in arXiv:2309.08586."""
    return scale * relu(s)


def relu_squared_weights(s: Value, row: Value, scale: Value = 1.0) -> Value:
    """scale * max(s, 0)**2, no normalization (Primer's activation, arXiv:2109.08668)."""
    positive = relu(s)
    return scale * (positive * positive)


def sum_normalized(s: Value, row: Value, feature: Value = relu, eps: Value = 1e-6) -> Value:
    """f(s) / (sum f(s) + eps) for a nonnegative function ``feature`` of one score, ReLU unless given.

    Normalization without an exponential (arXiv:2410.10781 uses sigmoid and ELU + 1 here).
    """
    weight = feature(s)
    return weight / (row.sum(weight) + eps)


def signed_normalized(s: Value, row: Value) -> Value:
    """The score over max(abs(sum s), 1): signed linear scores with a bounded row sum (arXiv:2410.10781)."""
    return s / maximum(abs(row.sum(s)), 1.0)


def cog(s: Value, row: Value) -> Value:
    """sign(s) * softmax(abs(s)): weights may be negative (Cog attention, arXiv:2411.07176).

    Keeps ``lse``, of abs(s).
    """
    return sign(s) * softmax(abs(s), row)


def affine_scaled(s: Value, row: Value, alpha: Value, beta: Value) -> Value:
    """alpha * softmax(s) + beta: affine-scaled attention; ``alpha`` and ``beta`` are numbers of the row. Keeps ``lse``.

    beta = (mean of alpha - alpha) / n keeps the sum of a row at the mean of alpha.
    """
    return alpha * softmax(s, row) + beta


def top_theta(s: Value, row: Value, theta: Value) -> Value:
    """exp(s) / sum exp(s) for scores above ``theta``, 0 below; the sum runs over all keys (Top-Theta, 2025).

    The denominator counts what was dropped (exact compensation). ``theta`` is a number of the row. Keeps ``lse``.
    """
    return where(s > theta, softmax(s, row), 0.0)
