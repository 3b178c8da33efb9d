"""Attention as a Kalman-like filter: keys are predictions of a decaying state, weighted by how well they fit.

Adaptive Filter Attention (2025), isotropic and robust, without rotation: with gap = abs(q - k), E = exp(mu * gap),
V = sigma2 * (1 - E**2) / (-2 mu) + eta2 * E**2 + gamma2, R2 = |q|**2 + E**2 |k|**2 - 2 E <q, k>,
s = tau**2 * (-log V - log(1 + R2 / (nu * D * V))) and w = softmax(s) * E.
"""

from attncompiler.dsl import Tensor, Variant, exp, log, log1p, softmax, to_float


class AdaptiveFilter(Variant):
    """``mu`` is below 0, the noise terms are above 0; the squared lengths of q and k come from ``prepare``."""

    scale = 1.0
    mu = Tensor("h", low=-0.2, high=-0.01)
    sigma2, eta2, gamma2, nu, tau = (Tensor("h", low=0.5, high=1.5) for _ in range(5))
    query_norm = Tensor("b", "h", "q")
    key_norm = Tensor("b", "g", "k")

    def prepare(self, q, k, v):
        norms = {"query_norm": q.square().sum(-1), "key_norm": k.square().sum(-1)}
        return q, k, v, norms

    def score(self, s, at):
        h, decay = at.h, self.decay(at)
        fade = decay * decay
        noise = self.sigma2[h] * (1 - fade) / (-2 * self.mu[h])
        noise = noise + self.eta2[h] * fade + self.gamma2[h]
        queries, keys = self.query_norm[at.b, h, at.q], self.key_norm[at.b, at.g, at.k]
        misfit = queries + fade * keys - 2 * decay * s
        fit = log(noise) + log1p(misfit / (self.nu[h] * to_float(at.D) * noise))
        return -self.tau[h] * self.tau[h] * fit

    def normalize(self, s, row):
        return softmax(s, row) * self.decay(row)

    def decay(self, at):
        return exp(self.mu[at.h] * abs(at.q - at.k))
