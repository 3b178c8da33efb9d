"""ReLU weights, scaled by the square root of the number of visible keys.

A Study on ReLU and Softmax in Transformer (Shen et al., 2023, arXiv:2302.06461): w = relu(s) / (gamma * sqrt(n / 2)),
n the number of keys a row sees.
"""

from attncompiler.dsl import Variant, causal, relu, sqrt


class Reluformer(Variant):
    """Rows keep ``total``, the sum of their weights, which the paper's loss on the rows is made of."""

    gamma: float = 1.0

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        weight = relu(s) / (self.gamma * sqrt(row.count() / 2))
        row.keep("total", row.sum(weight))
        return weight
