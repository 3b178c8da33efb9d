"""Sigmoid attention: no competition between keys, a bias instead (Ramapuram et al., arXiv:2409.04431)."""

from attncompiler.dsl import Variant, log, sigmoid, to_float


class Sigmoid(Variant):
    """The paper's bias is -log(number of keys): a row then starts out with a weight of about one in all."""

    def normalize(self, s, row):
        return sigmoid(s - log(to_float(row.N)))
