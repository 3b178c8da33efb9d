"""Causal attention aligned at the end: the last query sees the last key, whatever the two lengths.

The causal cross pattern of CAB: Comprehensive Attention Benchmarking on Long Sequence Modeling (Zhang et al., 2022,
arXiv:2210.07661), as FlashAttention aligns it: k <= q + N - M. With more queries than keys the first rows are empty.
"""

from attncompiler.dsl import Variant


class BottomRight(Variant):
    """Leave ``q_start`` at 0: the alignment follows from the lengths."""

    sample_lengths = (256, 512)

    def mask(self, at):
        return at.k <= at.q + at.N - at.M
