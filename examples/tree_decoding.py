"""A tree of drafted tokens verified at once: each node sees its ancestors and the prompt.

SpecInfer (Miao et al., 2023, arXiv:2305.09781) and its successors. With the tree laid out depth first, k is an ancestor
of q exactly when k <= q < last_descendant[k]; tokens of the prompt have every later token as a descendant.
"""

import torch

from attncompiler.dsl import Tensor, Variant, tree


class TreeDecoding(Variant):
    """``last_descendant`` is, for each node, the position after its subtree."""

    last_descendant = Tensor("k", dtype="int")

    def mask(self, at):
        return tree(at, self.last_descendant)

    def sample(self, sizes, generator):
        ends, open_nodes = [], []
        for node in range(sizes["N"]):
            open_nodes = [end for end in open_nodes if end > node]
            limit = open_nodes[-1] if open_nodes else sizes["N"]
            ends.append(int(torch.randint(node + 1, limit + 1, (), generator=generator)))
            open_nodes.append(ends[-1])
        return {"last_descendant": torch.tensor(ends)}
