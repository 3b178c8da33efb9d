"""Scores that fall linearly with the distance, a slope a head.

Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation (Press et al., 2021,
arXiv:2108.12409), ALiBi: softmax(s - slope[h] * (q - k)).
"""

from attncompiler.dsl import Tensor, Variant, causal


class ALiBi(Variant):
    """The paper's slopes are 2 ** (-8 * (head + 1) / heads): op(q, k, v, slope=...)."""

    slope = Tensor("h", low=0.0, high=0.5)

    def score(self, s, at):
        return s - self.slope[at.h] * (at.q - at.k)

    def mask(self, at):
        return causal(at)
