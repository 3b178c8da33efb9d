"""A forget gate for softmax attention: a key fades by the product of the gates since it was written.

Forgetting Transformer: Softmax Attention with a Forget Gate (Lin et al., 2025, arXiv:2503.02130):
s + sum over l = k + 1 .. q of log sigmoid(forget[l]), a difference of prefix sums.
"""

import torch

from attncompiler.dsl import Tensor, Variant, causal


class Forgetting(Variant):
    """``forget`` holds the gates' logits, ``decay`` their logarithms summed from the start."""

    forget = Tensor("b", "h", "position")
    decay = Tensor("b", "h", "position")

    def prepare(self, q, k, v, forget):
        # In float64: differences of long sums would lose what matters in float32.
        decay = torch.nn.functional.logsigmoid(forget.double()).cumsum(-1)
        return q, k, v, {"decay": decay}

    def score(self, s, at):
        return s + self.decay[at.b, at.h, at.q] - self.decay[at.b, at.h, at.k]

    def mask(self, at):
        return causal(at)

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        return {"forget": 2 + torch.randn(sizes["B"], sizes["H"], length, generator=generator)}
