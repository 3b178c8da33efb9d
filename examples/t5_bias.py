"""A learned bias a head and distance bucket: exact for near keys, logarithmic for far ones, no scale.

Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (Raffel et al., 2019,
arXiv:1910.10683), the decoder: s + table[h, bucket(q - k)], bucket(n) = n below 16, else
min(16 + floor(log(n / 16) / log(128 / 16) * 16), 31).
"""

import math

from attncompiler.dsl import Tensor, Variant, causal, log, maximum, minimum, to_float, to_int, where


class T5Bias(Variant):
    """``table`` holds 32 buckets a head."""

    scale = 1.0
    exact = 16
    per_nat = 16 / math.log(128 / 16)
    table = Tensor("h", 32)

    def score(self, s, at):
        n = at.q - at.k
        ratio = to_float(maximum(n, self.exact)) / self.exact
        far = minimum(self.exact + to_int(log(ratio) * self.per_nat), 31)
        return s + self.table[at.h, where(n < self.exact, n, far)]

    def mask(self, at):
        return causal(at)
