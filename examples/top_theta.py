"""Only scores above a calibrated threshold give values; what was dropped comes back as the mean value.

Top-Theta Attention (2025), with exact compensation of the denominator: p = softmax(s) where s > theta[h, q] or
q < dense, else 0; o = sum p v + (1 - sum p) * mean of the values up to q.
"""

import torch

from attncompiler.dsl import Tensor, Variant, causal, softmax, where


class TopTheta(Variant):
    """``theta`` is the threshold of each head and row; the first ``dense`` rows keep all keys."""

    dense: int = 16
    theta = Tensor("h", "q", low=-1.0, high=2.0)
    mean_value = Tensor("b", "g", "q", "d")

    def prepare(self, q, k, v, q_start):
        count = torch.arange(1, v.shape[2] + 1, device=v.device)
        means = (v.double().cumsum(2) / count[:, None]).to(v.dtype)
        last = (torch.arange(q.shape[2], device=v.device) + q_start).clamp(max=v.shape[2] - 1)
        return q, k, v, {"mean_value": means[:, :, last]}

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        kept = (s > self.theta[row.h, row.q]) | (row.q < self.dense)
        p = where(kept, softmax(s, row), 0.0)
        row.keep("mass", row.sum(p))
        return p

    def output(self, o, at):
        return o + (1 - at.stats.mass) * self.mean_value[at.b, at.g, at.q, at.d]
