"""A learned matrix says which video tokens see each other; it is soft while training.

SwinBERT: End-to-End Transformers with Sparse Attention for Video Captioning (Lin et al., 2021, arXiv:2111.13196):
s - 10000 * (1 - sigmoid(W[q, k])), with 1 instead of sigmoid(W) on the diagonal.
"""

from attncompiler.dsl import Tensor, Variant, sigmoid, where


class LearnedPairMask(Variant):
    """``pairs`` are the logits W, one a pair, shared by batches and heads."""

    pairs = Tensor("q", "k", low=4.0, high=12.0)

    def score(self, s, at):
        open_ = where(at.q == at.k, 1.0, sigmoid(self.pairs[at.q, at.k]))
        return s - 10000.0 * (1.0 - open_)
