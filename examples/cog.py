"""Weights that may be negative: a head can subtract as well as add.

More Expressive Attention with Negative Weights (Lv et al., 2024, arXiv:2411.07176): w = sign(s) * softmax(abs(s)).
"""

from attncompiler.dsl import Variant, causal, cog


class Cog(Variant):
    """A score of exactly 0 keeps its share of the denominator and gives nothing."""

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        return cog(s, row)
