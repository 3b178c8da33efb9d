"""The first token's weight times a factor a head, and the row normalised again.

ZeroTuning (2025): p'[0] = gain[h] * p[0], then p' / sum p', without any training. That is a bias of log gain[h] on the
score of key 0.
"""

from attncompiler.dsl import Tensor, Variant, causal, log, where


class ZeroTuning(Variant):
    """``gain`` above 1 strengthens the initial token, below 1 it spreads its weight over the others."""

    gain = Tensor("h", low=0.3, high=3.0)

    def score(self, s, at):
        return s + where(at.k == 0, log(self.gain[at.h]), 0.0)

    def mask(self, at):
        return causal(at)
