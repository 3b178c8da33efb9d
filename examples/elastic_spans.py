"""Every head has a window of its own, which may grow with the position.

MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression (Fu et al., 2024, arXiv:2406.14909):
k <= q and (k < sink or k > q - S), S = alpha[h] + floor(beta[h] * max(q + 1 - alpha[h], 0)).
"""

from attncompiler.dsl import Tensor, Variant, causal, maximum


class ElasticSpans(Variant):
    """``beta`` counts 256ths, so that the span is exact integer arithmetic."""

    sink: int = 4
    alpha = Tensor("h", dtype="int", low=4, high=64)
    beta = Tensor("h", dtype="int", low=0, high=256)

    def mask(self, at):
        alpha = self.alpha[at.h]
        span = alpha + self.beta[at.h] * maximum(at.q + 1 - alpha, 0) // 256
        return causal(at) & ((at.k < self.sink) | (at.k > at.q - span))
