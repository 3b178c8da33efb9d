"""A prefix that all tokens see, such as a prompt, and causal attention behind it.

The prefix language model of T5, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer
(Raffel et al., 2019, arXiv:1910.10683): k <= q or k < prefix[b].
"""

from attncompiler.dsl import Tensor, Variant, prefix_lm


class PrefixLM(Variant):
    """``prefix`` is the length of each sequence's prefix."""

    prefix = Tensor("b", dtype="int", low=0, high=64)

    def mask(self, at):
        return prefix_lm(at, self.prefix[at.b])
