"""Sliding tile attention on video: every tile of the grid sees the tiles around it, whole.

Fast Video Generation with Sliding Tile Attention (Zhang et al., 2025, arXiv:2502.04507): the window moves by whole
tiles, inward at the borders, so in the order of the layout no tile is partial and no element is masked.
"""

from attncompiler.dsl import Boxes, Variant, clamp, coords


class SlidingTile(Variant):
    """Tokens of frames x height x width in row-major order; the window counts tiles."""

    grid, tile, window = (6, 8, 16), (2, 4, 4), (1, 1, 3)
    layout = Boxes(grid, tile)
    sample_lengths = 6 * 8 * 16

    def mask(self, at):
        allowed = True
        axes = zip(
            coords(at.q, self.grid), coords(at.k, self.grid), self.tile, self.window, self.grid
        )
        for q, k, size, window, length in axes:
            start = clamp(q // size - window // 2, 0, length // size - window)
            allowed = (k // size >= start) & (k // size < start + window) & allowed
        return allowed
