"""Retrieval heads see everything, streaming heads the first and the recent tokens.

DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads (Xiao et al., 2024,
arXiv:2410.10819): k <= q and (full[g] or k < sink or q - k < recent).
"""

from attncompiler.dsl import Tensor, Variant, causal, sink_window


class DuoAttention(Variant):
    """``full`` is true for retrieval heads; the query heads of a key/value head share its kind."""

    sink: int = 8
    recent: int = 32
    full = Tensor("g", dtype="bool")

    def mask(self, at):
        return (causal(at) & self.full[at.g]) | sink_window(at, self.sink, self.recent)
