"""The backend ``dense``: a variant's own formulas on dense tensors, when it is asked for by name.

Nothing falls back to it. It is the oracle behind an operator's call, for comparing and for debugging: it needs
memory for B x H x M x N scores and is differentiable.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

import attncompiler.oracle
from attncompiler.block_sparse import BlockSparse
from attncompiler.runtime.arguments import refuse_positional, split_arguments
from attncompiler.runtime.block_table import check_sparsity, form_of, table_of
from attncompiler.runtime.module import AttentionModule
from attncompiler.runtime.signature import output_type
from attncompiler.user_code import shows_call
from attncompiler.variant import Variant


class DenseOperator:
    """The oracle with the call of an ``Operator``; computes in float64 and returns the dtype of its output."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.name = type(variant).__name__

    def __repr__(self) -> str:
        return f"<attncompiler dense operator {self.name}>"

    @shows_call
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *more: object,
        q_start: int = 0,
        scale: float | None = None,
        return_stats: bool = False,
        sparsity: BlockSparse | None = None,
        **arguments: Any,
    ) -> Any:
        """See ``Operator``."""
        if more:
            refuse_positional(self.variant, len(more))
        if sparsity is not None:
            check_sparsity(sparsity)
        params, tensors = split_arguments(self.variant, arguments)
        result = attncompiler.oracle.attention(
            self.variant,
            q,
            k,
            v,
            q_start=q_start,
            scale=scale,
            params=params,
            tensors=tensors,
            listed=None if sparsity is None else partial(_pairs, sparsity),
        )
        out = result.out.to(output_type(q.dtype))
        return (out, result.stats) if return_stats else out

    def module(self, **initial: Any) -> AttentionModule:
        """See ``Operator``."""
        return AttentionModule(self, initial)


def _pairs(sparsity: BlockSparse, q: Tensor, k: Tensor) -> Tensor:
    """Which pairs of a call belong to listed blocks, bool [1 or B, 1 or H, M, N]."""
    form = form_of(sparsity, q, k)
    pairs = table_of(sparsity, q, k) != 0
    if form.heads == "g":
        pairs = pairs.repeat_interleave(q.shape[1] // k.shape[1], 1)
    pairs = pairs.repeat_interleave(form.block[0], 2).repeat_interleave(form.block[1], 3)
    return pairs[:, :, : q.shape[2], : k.shape[2]]
