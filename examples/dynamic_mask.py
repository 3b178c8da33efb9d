"""A learned bias decides which keys a row keeps: the ``window`` largest among those it may see.

Trainable Dynamic Mask Sparse Attention (2025): softmax over s + bias[k] of the kept keys, bias = A * softplus(W v). The
bias does not depend on the query, so a key that dropped out never returns: it lives until death[k], k <= q < death[k].
"""

import heapq

import torch

from attncompiler.dsl import Tensor, Variant, causal


class DynamicMask(Variant):
    """``death`` follows from ``bias``: see ``death_times``."""

    bias = Tensor("b", "g", "k")
    death = Tensor("b", "g", "k", dtype="int")

    def score(self, s, at):
        return s + self.bias[at.b, at.g, at.k]

    def mask(self, at):
        return causal(at) & (at.q < self.death[at.b, at.g, at.k])

    def sample(self, sizes, generator):
        bias = torch.rand(sizes["B"], sizes["G"], sizes["N"], generator=generator)
        rows = [[death_times(row.tolist(), 32) for row in heads] for heads in bias]
        return {"bias": bias, "death": torch.tensor(rows).long().reshape(bias.shape)}


def death_times(bias, window):
    """The position at which each key is no longer among the ``window`` largest of its past."""
    kept, death = [], [2**30] * len(bias)
    for position, value in enumerate(bias):
        heapq.heappush(kept, (value, position))
        if len(kept) > window:
            death[heapq.heappop(kept)[1]] = position
    return death
