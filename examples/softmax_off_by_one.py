"""A softmax that may say nothing: one is added to the denominator.

Attention Is Off By One (Miller, 2023): w = exp(s) / (1 + sum exp(s)), as if there were a key of score 0 and value 0.
"""

from attncompiler.dsl import Variant, causal, softmax_off_by_one


class OffByOne(Variant):
    """A row whose scores all are very negative gives an output near 0."""

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        return softmax_off_by_one(s, row)
