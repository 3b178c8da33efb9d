"""Documents packed into one sequence of an encoder: all tokens of a document see each other and nothing else.

The document mask of FlashMask (Wang et al., 2024, arXiv:2410.01359): document[q] == document[k].
"""

import torch

from attncompiler.dsl import Tensor, Variant, document


class FullDocuments(Variant):
    """``ids`` is the document of each position, never decreasing."""

    ids = Tensor("position", dtype="int")

    def mask(self, at):
        return document(at, self.ids)

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        return {"ids": (torch.rand(length, generator=generator) < 0.03).cumsum(0)}
