"""Soft-capped scores in a causal sliding window.

Gemma 2: Improving Open Language Models at a Practical Size (2024, arXiv:2408.00118), its local layers:
softmax(cap * tanh(s / cap)) over the last ``window`` keys.
"""

from attncompiler.dsl import Variant, causal, sliding_window, tanh


class Gemma2Local(Variant):
    """Scores limited to (-cap, cap); a query sees itself and the ``window - 1`` keys before it."""

    cap: float = 50.0
    window: int = 1024

    def score(self, s, at):
        return self.cap * tanh(s / self.cap)

    def mask(self, at):
        return causal(at) & sliding_window(at, self.window)
