"""Softmax of standardised scores: a row's sharpness no longer depends on the spread of its scores.

The formula of Logit Standardization in Knowledge Distillation (Sun et al., 2024, arXiv:2403.01427), on rows of scores:
softmax((s - mean s) / (std s * temperature)). The mean must be known before the spread and both before the
exponentials: three passes over the keys.
"""

from attncompiler.dsl import Variant, causal, softmax, sqrt, square


class StandardizedSoftmax(Variant):
    """A small number keeps a row of equal scores away from a division by 0."""

    temperature: float = 0.5

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        mean = row.mean(s)
        deviation = sqrt(row.mean(square(s - mean)) + 1e-3)
        return softmax((s - mean) / (deviation * self.temperature), row)
