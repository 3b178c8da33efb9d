"""Points in space: each reads its nearest neighbours, with a learned bias for each rank among them.

The neighbourhoods of Point Transformer (Zhao et al., 2021, arXiv:2012.09164), scores by dot products instead of by
vectors: k in neighbors[b, q].
"""

import torch

from attncompiler.dsl import Tensor, Variant, where


class NearestPoints(Variant):
    """``neighbors`` are the positions of the nearest points, itself first; ``bias`` is what each rank adds."""

    count = 4
    neighbors = Tensor("b", "q", 4, dtype="int")
    bias = Tensor(4)

    def score(self, s, at):
        for rank in range(self.count):
            is_it = self.neighbors[at.b, at.q, rank] == at.k
            s = s + where(is_it, self.bias[rank], 0.0)
        return s

    def mask(self, at):
        listed = [self.neighbors[at.b, at.q, rank] == at.k for rank in range(self.count)]
        return listed[0] | listed[1] | listed[2] | listed[3]

    def sample(self, sizes, generator):
        place = torch.rand(
            sizes["B"], max(sizes["N"], sizes["q_start"] + sizes["M"]), 3, generator=generator
        )
        rows, keys = place[:, sizes["q_start"] :][:, : sizes["M"]], place[:, : sizes["N"]]
        order = torch.cdist(rows, keys).argsort(-1)
        ranks = torch.arange(self.count).clamp(max=sizes["N"] - 1)
        return super().sample(sizes, generator) | {"neighbors": order[..., ranks]}
