"""Weight that image sinks waste is given to the other image tokens, in heads that look at the image.

See What You Are Told: Visual Attention Sink in Large Multimodal Models (Kang et al., 2025, arXiv:2503.03321): where
sinks hold at most ``most`` of the image's weight and the image at least ``least`` of the row's, the weight of sinks is
multiplied by ``keep`` and what that frees is spread over the other image tokens in proportion to their weight.
"""

from attncompiler.dsl import Tensor, Variant, causal, softmax, where


class VisualRedistribution(Variant):
    """``kind`` of a key: 0 text, 1 image sink, 2 other image token."""

    keep: float = 0.6
    most: float = 0.5
    least: float = 0.2
    kind = Tensor("b", "k", dtype="int", low=0, high=3)

    def mask(self, at):
        return causal(at)

    def normalize(self, s, row):
        p = softmax(s, row)
        kind = self.kind[row.b, row.k]
        sink = row.sum(where(kind == 1, p, 0.0))
        other = row.sum(where(kind == 2, p, 0.0))
        chosen = (sink <= self.most * (sink + other)) & (sink + other >= self.least)
        less = where(chosen, self.keep, 1.0)
        more = where(chosen, 1 + (1 - self.keep) * sink / where(chosen, other, 1.0), 1.0)
        return p * where(kind == 1, less, where(kind == 2, more, 1.0))
