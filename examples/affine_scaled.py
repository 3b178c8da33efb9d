"""Softmax weights scaled and shifted for each query, so that a row need not sum to 1.

Affine-Scaled Attention (2026): w = alpha * softmax(s) + beta, beta = (average - alpha) / n, where alpha comes from the
query's token and ``average`` is its moving average. The constant term needs the sum of the visible values.
"""

from attncompiler.dsl import Tensor, Variant, affine_scaled, causal


class AffineScaled(Variant):
    """``length`` is n for each query: the number of keys it sees, or of all keys."""

    alpha = Tensor("b", "h", "q", low=0.2, high=1.5)
    average = Tensor("h", low=0.5, high=1.0)
    length = Tensor("q", low=16.0, high=64.0)

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        alpha = self.alpha[row.b, row.h, row.q]
        beta = (self.average[row.h] - alpha) / self.length[row.q]
        return affine_scaled(s, row, alpha, beta)
