"""Blocked local attention with a halo: the pixels of a block share one neighbourhood a little larger than the block.

HaloNet: Scaling Local Self-Attention for Parameter Efficient Visual Backbones (Vaswani et al., 2021,
arXiv:2103.12731): s = q . (k + r) / sqrt(D), r the embeddings of row and column distance, half of the features each;
keys in [c // block * block - halo, c // block * block + block + halo) on both axes, cut at the image's border.
"""

from attncompiler.dsl import Tensor, Variant


class HaloNet(Variant):
    """The embeddings hold the distances -5 .. 5, that is -(block + halo - 1) .. block + halo - 1."""

    width, block, halo = 16, 4, 2
    sample_lengths = 16 * 16
    row_embedding, column_embedding = Tensor(11, "half"), Tensor(11, "half")
    row_term, column_term = Tensor("b", "h", "q", 11), Tensor("b", "h", "q", 11)

    def prepare(self, q, k, v, row_embedding, column_embedding):
        half = row_embedding.shape[1]
        rows = q[..., :half] @ row_embedding.to(q.dtype).T
        columns = q[..., half : 2 * half] @ column_embedding.to(q.dtype).T
        root = q.shape[-1] ** 0.5
        return q, k, v, {"row_term": rows / root, "column_term": columns / root}

    def score(self, s, at):
        row = at.k // self.width - at.q // self.width + self.block + self.halo - 1
        column = at.k % self.width - at.q % self.width + self.block + self.halo - 1
        return s + self.row_term[at.b, at.h, at.q, row] + self.column_term[at.b, at.h, at.q, column]

    def mask(self, at):
        rows = self.near(at.q // self.width, at.k // self.width)
        return rows & self.near(at.q % self.width, at.k % self.width)

    def near(self, q, k):
        start = q // self.block * self.block
        return (k >= start - self.halo) & (k < start + self.block + self.halo)

    def sample(self, sizes, generator):
        return super().sample(sizes | {"half": sizes["D"] // 2}, generator)
