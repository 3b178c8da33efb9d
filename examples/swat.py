"""Sigmoid weights, a sliding window, rotary positions and ALiBi slopes of both signs.

Sliding Window Attention Training for Efficient Large Language Models (SWAT, 2025):
o = sum over the last ``window`` keys of sigmoid((R q) . (R k) / sqrt(D) + slope[h] * (q - k)) v, with
slopes -2**-i for one half of the heads and +2**-i for the other.
"""

import torch

from attncompiler.dsl import Tensor, Variant, causal, sigmoid, sliding_window


class Swat(Variant):
    """``slope`` is given with its sign."""

    window: int = 64
    slope = Tensor("h", low=-0.5, high=0.5)

    def prepare(self, q, k, v, q_start):
        return self.rotated(q, q_start), self.rotated(k, 0), v

    def rotated(self, x, first):
        half = x.shape[-1] // 2
        position = torch.arange(first, first + x.shape[2], dtype=torch.float64)
        angle = position[:, None] * 1e4 ** (-torch.arange(half, dtype=torch.float64) / half)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)

    def score(self, s, at):
        return s + self.slope[at.h] * (at.q - at.k)

    def mask(self, at):
        return causal(at) & sliding_window(at, self.window)

    def normalize(self, s, row):
        return sigmoid(s)
