"""A router decides for each token and head between the whole past and a window.

All-or-here attention (AHA, 2025): k <= q and (far[b, h, q] or q - k < window), far = sigmoid(router) > 0.5.
"""

from attncompiler.dsl import Tensor, Variant, causal


class AllOrHere(Variant):
    """``router`` holds the router's logits; the paper's window is 256."""

    window: int = 32
    router = Tensor("b", "h", "q")

    def mask(self, at):
        far = self.router[at.b, at.h, at.q] > 0
        return causal(at) & (far | (at.q - at.k < self.window))
