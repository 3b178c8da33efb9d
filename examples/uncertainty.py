"""Scores shrink toward 0 for keys whose embedding is uncertain.

UAT-LITE (2026): softmax(s * exp(-strength * uncertainty[b, k])), the uncertainty being the variance of a key's
embedding over several passes with dropout.
"""

from attncompiler.dsl import Tensor, Variant, exp


class Uncertainty(Variant):
    """``strength`` 0 is plain attention."""

    strength: float = 1.0
    uncertainty = Tensor("b", "k", low=0.0, high=2.0)

    def score(self, s, at):
        return s * exp(-self.strength * self.uncertainty[at.b, at.k])
