"""Images drawn scale by scale, each from the one before it alone: a chain of refinements, as in diffusion.

Scale-Wise VAR is Secretly Discrete Diffusion (SRDD, Kumar et al., 2025, arXiv:2509.22636):
scale_of[q] - 1 <= scale_of[k] <= scale_of[q].
"""

import torch

from attncompiler.dsl import Tensor, Variant


class MarkovScales(Variant):
    """``scale_of`` is the number of each position's scale, never decreasing; compare ``next_scale.py``."""

    scale_of = Tensor("position", dtype="int")

    def mask(self, at):
        behind = self.scale_of[at.q] - self.scale_of[at.k]
        return (behind >= 0) & (behind <= 1)

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        ends = torch.arange(1, length + 1).square().cumsum(0)  # scales of 1, 4, 9, 16 ... tokens
        return {"scale_of": torch.searchsorted(ends, torch.arange(length), right=True)}
