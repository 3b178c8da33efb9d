"""A sigmoid gate on each head's output, computed from the token itself.

Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free (Qiu et al., 2025,
arXiv:2505.06708): o * sigmoid(x W), elementwise.
"""

from attncompiler.dsl import Tensor, Variant, causal, sigmoid


class GatedAttention(Variant):
    """``gate`` holds the logits x W, one an output element."""

    gate = Tensor("b", "h", "q", "d")

    def mask(self, at):
        return causal(at)

    def output(self, o, at):
        return o * sigmoid(self.gate[at.b, at.h, at.q, at.d])
