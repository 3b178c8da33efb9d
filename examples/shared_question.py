"""One question, several answers in one sequence: each answer sees the question and itself.

The share-question mask of FlashMask (Wang et al., 2024, arXiv:2410.01359), used for reward models and preference
training: k <= q and (answer[k] == answer[q] or answer[k] == 0), the question being number 0.
"""

import torch

from attncompiler.dsl import Tensor, Variant, causal, document


class SharedQuestion(Variant):
    """``answer`` is 0 for the question's tokens, then 1, 2 ... for those of each answer."""

    answer = Tensor("position", dtype="int")

    def mask(self, at):
        return causal(at) & (document(at, self.answer) | (self.answer[at.k] == 0))

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        return {"answer": (torch.rand(length, generator=generator) < 0.03).cumsum(0)}
