"""Packed videos drawn frame by frame: full attention inside a block, causal between blocks, none between videos.

The block-causal document mask of the Long-Context Attention Benchmark (LongCA-bench, 2025):
document[q] == document[k] and k // block <= q // block.
"""

import torch

from attncompiler.dsl import Tensor, Variant, block_causal, document


class BlockCausalDocuments(Variant):
    """``ids`` is the document of each position; documents are whole blocks, 1024 positions in the benchmark."""

    block = 16
    ids = Tensor("position", dtype="int")

    def mask(self, at):
        return document(at, self.ids) & block_causal(at, self.block)

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        first = torch.rand(length // self.block + 1, generator=generator) < 0.4
        return {"ids": first.cumsum(0).repeat_interleave(self.block)[:length]}
