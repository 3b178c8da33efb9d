"""A sliding window that keeps the first tokens: they collect the attention that rows have no use for.

Efficient Streaming Language Models with Attention Sinks (Xiao et al., 2023, arXiv:2309.17453):
k <= q and (k < sink or q - k < window).
"""

from attncompiler.dsl import Variant, sink_window


class StreamingLLM(Variant):
    """The paper keeps four sink tokens."""

    sink: int = 4
    window: int = 64

    def mask(self, at):
        return sink_window(at, self.sink, self.window)
