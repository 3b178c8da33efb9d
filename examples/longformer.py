"""A window for all, and a few tokens that read everything and are read by everything.

Longformer: The Long-Document Transformer (Beltagy et al., 2020, arXiv:2004.05150):
abs(q - k) <= window or k < global_tokens or q < global_tokens.
"""

from attncompiler.dsl import Variant


class Longformer(Variant):
    """The global tokens stand first, such as a classification token or a question."""

    window: int = 16
    global_tokens: int = 2

    def mask(self, at):
        near = abs(at.q - at.k) <= self.window
        return near | (at.k < self.global_tokens) | (at.q < self.global_tokens)
