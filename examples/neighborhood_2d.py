"""Neighborhood attention on an image: each pixel sees the window around it, moved inward at the borders.

Neighborhood Attention Transformer (Hassani et al., 2022, arXiv:2204.07143), made fast in Faster Neighborhood
Attention (2024): along each axis start = clamp(c - window // 2, 0, length - window), keys in [start, start + window).
"""

from attncompiler.dsl import Variant, neighborhood


class Neighborhood2D(Variant):
    """Tokens of a height x width image in row-major order."""

    grid = (16, 16)
    sample_lengths = 16 * 16
    window = 7

    def mask(self, at):
        return neighborhood(at, self.window, grid=self.grid)
