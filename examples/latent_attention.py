"""Keys and values are one latent vector a token; the projection of the keys moves to the query.

DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model (2024, arXiv:2405.04434), multi-head
latent attention with absorbed weights: s = ((W[h]^T q) . c + q_rope . k_rope) / sqrt(D + R), o = sum p c, so the kernel
runs with keys of D + R features and values of D. The caller applies the value projection to o.
"""

import torch

from attncompiler.dsl import Tensor, Variant, causal


class LatentAttention(Variant):
    """k holds the latents c, v is not read; queries and keys come with their rotated parts beside them."""

    scale = 1.0
    weight = Tensor("h", "D", "D", low=-0.2, high=0.2)
    query_rope = Tensor("b", "h", "q", "R")
    key_rope = Tensor("b", "g", "k", "R")

    def prepare(self, q, k, v, weight, query_rope, key_rope):
        size = q.shape[-1] + query_rope.shape[-1]
        absorbed = torch.einsum("bhqd,hdc->bhqc", q, weight.to(q.dtype))
        queries = torch.cat((absorbed, query_rope.to(q.dtype)), -1) / size**0.5
        return queries, torch.cat((k, key_rope.to(k.dtype)), -1), k

    def mask(self, at):
        return causal(at)
