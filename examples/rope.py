"""Rotary positions: queries and keys are turned by their position, so scores depend on the distance.

RoFormer: Enhanced Transformer with Rotary Position Embedding (Su et al., 2021, arXiv:2104.09864): features 2i and
2i + 1 form a pair that turns by position * base ** (-2 i / D); a last odd feature stays.
"""

import torch

from attncompiler.dsl import Variant, causal


class Rope(Variant):
    """``prepare`` is ordinary PyTorch before the kernel; queries start at position ``q_start``."""

    base: float = 10000.0

    def prepare(self, q, k, v, q_start):
        return self.rotated(q, q_start), self.rotated(k, 0), v

    def rotated(self, x, first):
        pairs = x.shape[-1] // 2
        position = torch.arange(first, first + x.shape[2], dtype=torch.float64)
        angle = position[:, None] * self.base ** (-torch.arange(pairs).double() / pairs)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        even, odd = x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
        return torch.cat((turned, x[..., 2 * pairs :]), -1)

    def mask(self, at):
        return causal(at)
