"""Documents packed into one sequence: causal attention that never crosses from one to the next.

Efficient Sequence Packing without Cross-contamination (Krell et al., 2021, arXiv:2107.02027):
k <= q and document[q] == document[k].
"""

import torch

from attncompiler.dsl import Tensor, Variant, causal, document


class PackedDocuments(Variant):
    """``ids`` is the document of each position, never decreasing."""

    ids = Tensor("position", dtype="int")

    def mask(self, at):
        return causal(at) & document(at, self.ids)

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        return {"ids": (torch.rand(length, generator=generator) < 0.03).cumsum(0)}
