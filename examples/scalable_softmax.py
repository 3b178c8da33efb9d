"""Scores times the log of the number of keys, so that attention does not flatten as the context grows.

Scalable-Softmax Is Superior for Attention (Nakanishi, 2025, arXiv:2501.19399): softmax(slope[h] * log(n) * s), n the
number of keys the row sees.
"""

from attncompiler.dsl import Tensor, Variant, causal, log, softmax


class ScalableSoftmax(Variant):
    """``slope`` is learned; the paper's values lie around 0.4."""

    slope = Tensor("h", low=0.2, high=0.6)

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        return softmax(self.slope[row.h] * log(row.count()) * s, row)
