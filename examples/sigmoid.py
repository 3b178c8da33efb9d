"""No competition between keys: a sigmoid with a bias instead of the softmax.

Theory, Analysis, and Best Practices for Sigmoid Self-Attention (Ramapuram et al., 2024, arXiv:2409.04431):
w = sigmoid(s - log n), n the number of keys.
"""

from attncompiler.dsl import Variant, log, sigmoid, to_float


class Sigmoid(Variant):
    """The paper's bias is -log(number of keys): a row then starts out with a weight of about one in all."""

    def normalize(self, s, row):
        return sigmoid(s - log(to_float(row.N)))
