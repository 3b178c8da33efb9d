"""Training on a part of the pairs: tokens are dealt into groups anew at each step and see their own group.

The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles (Hussain et al., 2023, arXiv:2306.01705),
stochastically subsampled self-attention: k <= q and slot[q] // group == slot[k] // group, slot a permutation.
"""

import torch

from attncompiler.dsl import Tensor, Variant, causal


class Subsampled(Variant):
    """``slot`` is where the shuffle puts each position; without the shuffle it would be attention in chunks."""

    group = 32
    slot = Tensor("position", dtype="int")

    def mask(self, at):
        return causal(at) & (self.slot[at.q] // self.group == self.slot[at.k] // self.group)

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        return {"slot": torch.randperm(length, generator=generator)}
