"""Weights by distance instead of by angle, which makes self-attention Lipschitz when q and k share a projection.

The Lipschitz Constant of Self-Attention (Kim et al., 2020, arXiv:2006.04710): softmax(-|q - k|**2 / sqrt(D)), with
|q - k|**2 = |q|**2 + |k|**2 - 2 <q, k>.
"""

from attncompiler.dsl import Tensor, Variant


class L2Distance(Variant):
    """The squared lengths come from ``prepare``, divided by sqrt(D) like the dot product."""

    query_norm = Tensor("b", "h", "q")
    key_norm = Tensor("b", "g", "k")

    def prepare(self, q, k, v):
        root = q.shape[-1] ** 0.5
        norms = {"query_norm": q.square().sum(-1) / root, "key_norm": k.square().sum(-1) / root}
        return q, k, v, norms

    def score(self, s, at):
        return 2 * s - self.query_norm[at.b, at.h, at.q] - self.key_norm[at.b, at.g, at.k]
