"""Generalized neighborhood attention on video: strided windows in space, causal in time.

Generalized Neighborhood Attention (Hassani et al., 2025, arXiv:2504.16922): the queries of a stride group share the
window of their leader, lead = min(c // stride * stride + stride // 2, length - 1); a causal axis sees
[lead - window + 1, c].
"""

from attncompiler.dsl import Variant, neighborhood


class GeneralizedNeighborhood(Variant):
    """Tokens of frames x height x width in row-major order."""

    grid = (5, 6, 8)
    sample_lengths = 5 * 6 * 8
    window = (3, 4, 5)
    stride = (1, 2, 4)
    is_causal = (True, False, False)

    def mask(self, at):
        return neighborhood(
            at, self.window, grid=self.grid, stride=self.stride, is_causal=self.is_causal
        )
