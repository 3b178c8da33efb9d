"""Chosen heads are blended with doing nothing, the weak model that guides a diffusion model away from errors.

SoftPAG, from Fine-Grained Perturbation Guidance via Attention Head Selection (2025): o = (1 - u[h]) * softmax(s) v +
u[h] * v[q]; u = 1 is perturbed-attention guidance (PAG).
"""

from attncompiler.dsl import Tensor, Variant


class SoftPAG(Variant):
    """``own`` holds the value of each query's own token."""

    u = Tensor("h", low=0.0, high=1.0)
    own = Tensor("b", "h", "q", "d")

    def output(self, o, at):
        u = self.u[at.h]
        return (1 - u) * o + u * self.own[at.b, at.h, at.q, at.d]
