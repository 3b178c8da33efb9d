"""Attention as the adjacency of a graph: weights below a threshold are no edges, edges are summed as in a GIN.

Graph-Aware Isomorphic Attention for Adaptive Dynamics in Transformers (Buehler, 2025), before the network that maps
each head: o = epsilon * x + sum of relu(p - tau) x, p = softmax(s). The threshold acts on the final weight, so the
denominator takes a pass over the keys of its own.
"""

from attncompiler.dsl import Tensor, Variant, causal, relu, softmax


class GraphIsomorphic(Variant):
    """``own`` holds the query's own features, in the heads and features of the output."""

    tau: float = 0.01
    epsilon: float = 0.5
    own = Tensor("b", "h", "q", "d")

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        return relu(softmax(s, row) - self.tau)

    def output(self, o, at):
        return o + self.epsilon * self.own[at.b, at.h, at.q, at.d]
