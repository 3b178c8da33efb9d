"""Images drawn scale by scale: a token sees its own scale and all coarser ones.

Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction (Tian et al., 2024,
arXiv:2404.02905): level[k] <= level[q].
"""

import torch

from attncompiler.dsl import Tensor, Variant, next_scale


class NextScale(Variant):
    """``level`` is the scale of each position, never decreasing; the paper's scales have these sides."""

    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    level = Tensor("position", dtype="int")
    sample_lengths = 680

    def mask(self, at):
        return next_scale(at, self.level)

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        ends = torch.tensor([side * side for side in self.sides]).cumsum(0)
        return {"level": torch.bucketize(torch.arange(length), ends, right=True)}
