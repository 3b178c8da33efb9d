"""What a call of flex_attention means: dense attention in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

B, H, G, S, D, DV = 2, 4, 2, 70, 16, 24

Body = Callable[..., Any]


@dataclass
class Dense:
    out: Tensor
    lse: Tensor
    max_scores: Tensor


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_mod: Body | None = None,
    mask_mod: Body | None = None,
    allowed: Tensor | None = None,
    scale: float | None = None,
) -> Dense:
    """Attention by its definition, in float64; ``allowed`` [B, H, M, N] restricts the pairs further."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    score = torch.einsum("bhqd,bhkd->bhqk", q, k) * (q.shape[3] ** -0.5 if scale is None else scale)
    at = [
        torch.arange(n).view([-1 if i == axis else 1 for i in range(4)])
        for axis, n in enumerate(score.shape)
    ]
    if score_mod is not None:
        score = score_mod(score, *at)
    if mask_mod is not None:
        score = torch.where(mask_mod(*at), score, -math.inf)
    if allowed is not None:
        score = torch.where(allowed, score, -math.inf)
    empty = (score == -math.inf).all(-1)
    safe = torch.where(empty[..., None], 0.0, score)  # whose gradient is no nan
    lse = safe.logsumexp(-1)
    weight = torch.where(empty[..., None], 0.0, (safe - lse[..., None]).exp())
    return Dense(weight @ v, torch.where(empty, -math.inf, lse), score.amax(-1))


def inputs(
    *, batch: int = B, heads: int = H, groups: int = G, queries: int = S, keys: int = S
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, heads, queries, D),
        torch.randn(batch, groups, keys, D),
        torch.randn(batch, groups, keys, DV),
    )


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def window_of(size: int) -> Body:
    def sliding_window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx - kv_idx < size) & (q_idx >= kv_idx)

    return sliding_window
