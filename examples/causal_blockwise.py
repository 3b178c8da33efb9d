"""Examples in a prompt that do not see each other; the question behind them sees them all.

The causal blockwise mask of FlashMask (Wang et al., 2024, arXiv:2410.01359), used for learning from many examples in a
context: k <= q and (document[q] == document[k] or document[q] is the last).
"""

import torch

from attncompiler.dsl import Tensor, Variant, causal, document


class CausalBlockwise(Variant):
    """``ids`` is the document of each position, never decreasing, and ``last`` the number of the last one."""

    ids = Tensor("position", dtype="int")
    last = Tensor(dtype="int")

    def mask(self, at):
        asks = self.ids[at.q] == self.last
        return causal(at) & (document(at, self.ids) | asks)

    def sample(self, sizes, generator):
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        ids = (torch.rand(length, generator=generator) < 0.03).cumsum(0)
        return {"ids": ids, "last": ids[-1].clone()}
