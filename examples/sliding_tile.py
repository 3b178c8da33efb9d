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
        queries, keys, allowed = coords(at.q, self.grid), coords(at.k, self.grid), True
        for axis in range(3):
            size, window = self.tile[axis], self.window[axis]
            start = clamp(queries[axis] // size - window // 2, 0, self.grid[axis] // size - window)
            tile = keys[axis] // size
            allowed = (tile >= start) & (tile < start + window) & allowed
        return allowed
