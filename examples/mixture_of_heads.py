"""Each token weighs the heads: some are shared, of the others a router picks the best.

MoH: Multi-Head Attention as Mixture-of-Head Attention (Jin et al., 2024, arXiv:2410.11842): o[h] * g[h], g = a1 *
softmax(shared) * S for S shared heads, a2 * (the top k of softmax(routed), summing to 1) * k for the others, with
(a1, a2) = 2 * softmax(balance).
"""

import torch

from attncompiler.dsl import Tensor, Variant


class MixtureOfHeads(Variant):
    """The first quarter of the heads is shared; half of the others are active for a token."""

    router = Tensor("b", "h", "q")
    balance = Tensor("b", "q", 2)
    gate = Tensor("b", "h", "q")

    def prepare(self, q, k, v, router, balance):
        shared = router.shape[1] // 4
        first, second = (2 * balance.softmax(-1)).unsqueeze(1).unbind(-1)
        always = first * router[:, :shared].softmax(1) * shared
        routed = router[:, shared:].softmax(1)
        active = (routed.shape[1] + 1) // 2
        best = routed.topk(active, dim=1)
        chosen = torch.zeros_like(routed).scatter(1, best.indices, best.values)
        chosen = second * chosen / chosen.sum(1, keepdim=True) * active
        return q, k, v, {"gate": torch.cat((always, chosen), 1)}

    def output(self, o, at):
        return o * self.gate[at.b, at.h, at.q]
