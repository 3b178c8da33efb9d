"""Sigmoid weights divided by their sum.

When Attention Sink Emerges in Language Models: An Empirical View (Gu et al., 2024, arXiv:2410.10781):
w = sigmoid(s) / (sum sigmoid(s) + 1e-8). The paper finds sinks with this, and none with the sigmoid alone.
"""

from attncompiler.dsl import Variant, causal, sigmoid, sum_normalized


class SigmoidNormalized(Variant):
    """The sum is a plain running sum: partial results over pieces of the keys just add."""

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        return sum_normalized(s, row, feature=sigmoid, eps=1e-8)
