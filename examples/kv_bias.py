"""A learned key and value a head that every query may use besides the real ones.

When Attention Sink Emerges in Language Models: An Empirical View (Gu et al., 2024, arXiv:2410.10781), KV biases:
o = (exp(q . k*) v* + sum exp(s) v) / (exp(q . k*) + sum exp(s)), q . k* scaled like s. With v* = 0 it is the K bias.
"""

import torch

from attncompiler.dsl import Tensor, Variant, causal, exp, sink_softmax


class KVBias(Variant):
    """``prepare`` makes one logit a query; the extra value joins in ``output`` with its share of the row."""

    key_bias = Tensor("h", "D")
    value_bias = Tensor("h", "d")
    logit = Tensor("b", "h", "q")

    def prepare(self, q, k, v, key_bias):
        logit = torch.einsum("bhqd,hd->bhq", q, key_bias.to(q.dtype)) / q.shape[-1] ** 0.5
        return q, k, v, {"logit": logit}

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        return sink_softmax(s, row, self.logit[row.b, row.h, row.q])

    def output(self, o, at):
        share = exp(self.logit[at.b, at.h, at.q] - at.stats.lse)
        return o + share * self.value_bias[at.h, at.d]
