"""Sinks other than the first token lose weight to all other keys.

Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training through Attention
Calibration (Yu et al., 2024, arXiv:2406.15765): p[sinks] *= beta; what that frees goes to the other keys in proportion
to their weight, a factor 1 + (1 - beta) * S_sinks / S_others.
"""

import torch

from attncompiler.dsl import Tensor, Variant, causal, softmax, where


class SinkCalibration(Variant):
    """``sink`` marks the keys found by a first call: their mean weight over the queries exceeds a threshold."""

    beta: float = 0.4
    sink = Tensor("b", "h", "k", dtype="bool")

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        p = softmax(s, row)
        sink = self.sink[row.b, row.h, row.k]
        lost = (1 - self.beta) * row.sum(where(sink, p, 0.0))
        return p * where(sink, self.beta, 1 + lost / row.sum(where(sink, 0.0, p)))

    def sample(self, sizes, generator):
        chance = torch.rand(sizes["B"], sizes["H"], sizes["N"], generator=generator)
        # The first token is no candidate, so some key is always left to receive.
        return {"sink": (chance < 0.1) & (torch.arange(sizes["N"]) > 0)}
