"""A causal window no larger than a tile: exact attention nearby, in layers between those of a linear attention.

Simple linear attention language models balance the recall-throughput tradeoff (Based, Arora et al., 2024,
arXiv:2402.18668), its layers with windows: k <= q and q - k < window.
"""

from attncompiler.dsl import Variant, causal, sliding_window


class BasedWindow(Variant):
    """The windows of the paper hold 64 or 128 keys, what one tile of a matrix unit does."""

    window: int = 64

    def mask(self, at):
        return causal(at) & sliding_window(at, self.window)
