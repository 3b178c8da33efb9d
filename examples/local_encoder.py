"""The local layers of an encoder: a window on both sides of a token.

ModernBERT, Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder (Warner et al., 2024, arXiv:2412.13663), two
of three layers: abs(q - k) <= reach.
"""

from attncompiler.dsl import Variant


class LocalEncoder(Variant):
    """The model's windows reach 64 tokens to each side."""

    reach: int = 64

    def mask(self, at):
        return abs(at.q - at.k) <= self.reach
