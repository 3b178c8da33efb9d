"""Blocks at distances 1, 2, 4, 8 ...: any token reaches any other in a logarithmic number of layers.

PowerAttention (2025, arXiv:2503.03588): k <= q and the block distance d = q // block - k // block is 0 or a power of
two, or d < window, or the key's block is one of the first ``sink``.
"""

from attncompiler.dsl import Variant, power_of_two


class PowerAttention(Variant):
    """The paper's models use blocks of 256 tokens, about five in the window and one sink block."""

    block = 16
    window: int = 2
    sink: int = 1

    def mask(self, at):
        return power_of_two(at, self.block, self.window, self.sink)
