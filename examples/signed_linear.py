"""Scores as weights, sign and all, over the size of their sum when that exceeds 1.

When Attention Sink Emerges in Language Models: An Empirical View (Gu et al., 2024, arXiv:2410.10781), the identity
kernel: w = s / max(abs(sum s), 1). Models trained this way develop no sink.
"""

from attncompiler.dsl import Variant, causal, signed_normalized


class SignedLinear(Variant):
    """Linear in the scores: no exponential, no maximum."""

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        return signed_normalized(s, row)
