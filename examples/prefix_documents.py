"""Packed documents, each with a prefix that all of its tokens see, such as an instruction.

The prefix language model of T5 (Raffel et al., 2019, arXiv:1910.10683) on packed sequences:
document[q] == document[k] and (k <= q or k < start[document[q]] + prefix[document[q]]).
"""

import torch

from attncompiler.dsl import Tensor, Variant, document


class PrefixDocuments(Variant):
    """``ids`` is the document of each position; ``start`` and ``prefix`` give its first position and its prefix."""

    ids = Tensor("position", dtype="int")
    start = Tensor("documents", dtype="int")
    prefix = Tensor("documents", dtype="int")

    def mask(self, at):
        mine = self.ids[at.q]
        readable = (at.k <= at.q) | (at.k < self.start[mine] + self.prefix[mine])
        return document(at, self.ids) & readable

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        ids = (torch.rand(length, generator=generator) < 0.03).cumsum(0)
        start = torch.searchsorted(ids, torch.arange(int(ids[-1]) + 1))
        prefix = torch.randint(0, 24, start.shape, generator=generator)
        return {"ids": ids, "start": start, "prefix": prefix}
