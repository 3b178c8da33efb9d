"""Shifted groups of tokens that all see the first tokens too; some of the shifted heads are put back in place.

SinkLoRA: Enhanced Efficiency and Chat Capabilities for Long-Context Large Language Models (Zhang, 2024,
arXiv:2406.05678), SF-Attn: k <= q and (k < sink or (q + shift[h]) // group == (k + shift[h]) // group).
"""

import torch

from attncompiler.dsl import Tensor, Variant, causal, shifted_chunks


class SinkGroups(Variant):
    """``shift`` is group // 2 for the heads that stay shifted, a part of one half of them, and 0 for the others."""

    group = 32
    sink: int = 4
    shift = Tensor("h", dtype="int")

    def mask(self, at):
        return (causal(at) & (at.k < self.sink)) | shifted_chunks(at, self.group, self.shift[at.h])

    def sample(self, sizes, generator):
        return {"shift": (torch.arange(sizes["H"]) % 3 == 1) * (self.group // 2)}
