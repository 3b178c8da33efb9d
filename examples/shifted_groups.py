"""Groups of tokens that half of the heads see shifted by half a group, so that information crosses the borders.

LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models (Chen et al., 2023, arXiv:2309.12307), S2-Attn
in the form without wrap-around: k <= q and (q + shift[h]) // group == (k + shift[h]) // group.
"""

import torch

from attncompiler.dsl import Tensor, Variant, shifted_chunks


class ShiftedGroups(Variant):
    """``shift`` is 0 for one half of the heads and group // 2 for the other."""

    group = 32
    shift = Tensor("h", dtype="int")

    def mask(self, at):
        return shifted_chunks(at, self.group, self.shift[at.h])

    def sample(self, sizes, generator):
        return {"shift": torch.arange(sizes["H"]) % 2 * (self.group // 2)}
