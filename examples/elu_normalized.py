"""ELU + 1 instead of the exponential: still positive and normalised, but linear for large scores.

When Attention Sink Emerges in Language Models: An Empirical View (Gu et al., 2024, arXiv:2410.10781):
w = f(s) / (sum f(s) + 1e-8), f(s) = elu(s) + 1 = s + 1 above 0 and exp(s) below.
"""

from attncompiler.dsl import Variant, causal, exp, minimum, sum_normalized, where


class EluNormalized(Variant):
    """No maximum is subtracted and none is needed: the exponent is never above 0."""

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        return sum_normalized(s, row, feature=self.feature, eps=1e-8)

    def feature(self, s):
        return where(s > 0, s + 1, exp(minimum(s, 0)))
