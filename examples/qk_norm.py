"""Cosines of queries and keys times a learned temperature a head.

Query-Key Normalization for Transformers (Henry et al., 2020, arXiv:2010.04245): softmax(g[h] * q / |q| . k / |k|), no
other scale.
"""

import torch

from attncompiler.dsl import Tensor, Variant


class QKNorm(Variant):
    """The paper starts ``temperature`` at log2(L**2 - L) for sequences of length L."""

    scale = 1.0
    temperature = Tensor("h", low=1.0, high=16.0)

    def prepare(self, q, k, v):
        normalize = torch.nn.functional.normalize
        return normalize(q, dim=-1), normalize(k, dim=-1), v

    def score(self, s, at):
        return self.temperature[at.h] * s
