"""A learned logit a head that takes weight and gives no value, as in the gpt-oss models.

gpt-oss-120b and gpt-oss-20b Model Card (OpenAI, 2025, arXiv:2508.10925): w = exp(s) / (exp(sink[h]) + sum exp(s)), in
layers that alternate between full and sliding-window attention; this is the windowed one.
"""

from attncompiler.dsl import Tensor, Variant, causal, sink_softmax, sliding_window


class LearnedSink(Variant):
    """The models' window is 128."""

    window: int = 128
    sink = Tensor("h")

    def mask(self, at):
        return causal(at) & sliding_window(at, self.window)

    def normalize(self, s, row):
        return sink_softmax(s, row, self.sink[row.h])
