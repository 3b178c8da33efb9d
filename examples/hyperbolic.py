"""Queries, keys and values on a hyperboloid: weights by hyperbolic distance, the mean taken in Klein coordinates.

Hyperbolic Attention Networks (Gulcehre et al., 2018, arXiv:1805.09786): with x lifted to (sqrt(1 + |x|**2), x),
d = arcosh(-<q, k>_L), o = sum of exp(-beta d) g v / sum of exp(-beta d) g, v in Klein coordinates and g its Lorentz
factor (the Einstein midpoint).
"""

import torch

from attncompiler.dsl import Tensor, Variant, log, maximum, sqrt


class Hyperbolic(Variant):
    """The lift adds a feature whose product is -<q, k>_L once the others change sign."""

    scale = 1.0
    beta: float = 1.0
    log_lorentz = Tensor("b", "g", "k")

    def prepare(self, q, k, v):
        def height(x):
            return (1 + x.square().sum(-1, keepdim=True)).sqrt()

        klein = v / height(v)
        factor = {"log_lorentz": height(v).log()[..., 0]}
        return torch.cat((-q, height(q)), -1), torch.cat((k, height(k)), -1), klein, factor

    def score(self, s, at):
        distance = log(s + sqrt(maximum(s * s - 1, 0.0)))
        return self.log_lorentz[at.b, at.g, at.k] - self.beta * distance
