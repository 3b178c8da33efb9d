"""A graph of agents of several kinds: which kinds have edges between them, and who is in sight.

HEIGHT: Heterogeneous Interaction Graph Transformer for Robot Navigation in Crowded and Constrained Environments (Liu
et al., 2024): edges[kind[q], kind[k]] and visible[b, k].
"""

import torch

from attncompiler.dsl import Tensor, Variant


class InteractionGraph(Variant):
    """``kind`` is 0 for the robot, 1 for humans, 2 for obstacles; people that no sensor sees are not read."""

    kind = Tensor("b", "position", dtype="int")
    edges = Tensor(3, 3, dtype="bool")
    visible = Tensor("b", "k", dtype="bool")

    def mask(self, at):
        linked = self.edges[self.kind[at.b, at.q], self.kind[at.b, at.k]]
        return linked & self.visible[at.b, at.k]

    def sample(self, sizes, generator):
        batch, length = sizes["B"], max(sizes["N"], sizes["q_start"] + sizes["M"])
        return {
            "kind": torch.randint(0, 3, (batch, length), generator=generator).sort().values,
            "edges": torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0]]).bool(),
            "visible": torch.rand(batch, sizes["N"], generator=generator) < 0.8,
        }
