"""Bodies as people write them for FlexAttention."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import and_masks, or_masks

from tests.flex_reference import B, Body, H, S, causal, window_of


def documents(lengths: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


# Each case gives a score_mod and a mask_mod, of which either may be None.


def plain() -> tuple[Body | None, Body | None]:
    return None, None


def causal_mask() -> tuple[Body | None, Body | None]:
    return None, causal


def causal_by_score() -> tuple[Body | None, Body | None]:
    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return torch.where(q_idx >= kv_idx, score, -float("inf"))

    return score_mod, None


def sliding_window() -> tuple[Body | None, Body | None]:
    return None, window_of(13)


def two_sided_window() -> tuple[Body | None, Body | None]:
    return None, lambda b, h, q_idx, kv_idx: torch.abs(q_idx - kv_idx) <= 9


def prefix_lm() -> tuple[Body | None, Body | None]:
    prefix_length = torch.tensor([11, 37], dtype=torch.int32)

    def prefix_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx <= prefix_length[b]

    return None, or_masks(prefix_mask, causal)


def document_mask() -> tuple[Body | None, Body | None]:
    document_id = documents([20, 7, 30, 13])

    def document_causal_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return causal(b, h, q_idx, kv_idx) & (document_id[q_idx] == document_id[kv_idx])

    return None, document_causal_mask


def packed_documents() -> tuple[Body | None, Body | None]:
    segment_ids = torch.stack([documents([20, 7, 30, 13]), documents([1, 60, 4, 5])])
    segment_ids[1, -5:] = -1  # padding

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        same = segment_ids[b, q_idx] == segment_ids[b, kv_idx]
        return torch.logical_and(same, segment_ids[b, kv_idx] >= 0)

    return None, and_masks(causal, mask_mod)


def documents_with_offsets() -> tuple[Body | None, Body | None]:
    """Any mask_mod in coordinates of its document: the wrapper of published examples."""
    lengths = [20, 7, 30, 13]
    document_id = documents(lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)

    def wrapped(inner: Body) -> Body:
        def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            same = document_id[q_idx] == document_id[kv_idx]
            q_logical = q_idx - offsets[document_id[q_idx]]
            kv_logical = kv_idx - offsets[document_id[kv_idx]]
            return torch.where(same, inner(b, h, q_logical, kv_logical), False)

        return mask_mod

    return None, wrapped(window_of(9))


def jagged_relative_bias() -> tuple[Body | None, Body | None]:
    document_id = documents([20, 50])
    offsets = torch.tensor([0, 20, 70])

    def relative(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + 0.1 * (q_idx - kv_idx)

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        q_logical, kv_logical = (i - offsets[document_id[i]] for i in (q_idx, kv_idx))
        inner = relative(score, b, h, q_logical, kv_logical)
        return torch.where(document_id[q_idx] == document_id[kv_idx], inner, -float("inf"))

    return score_mod, None


def alibi_formula() -> tuple[Body | None, Body | None]:
    heads = H

    def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + torch.exp2(-((h + 1) * 8.0 / heads)) * (kv_idx - q_idx)

    return alibi, causal


def alibi_tensor() -> tuple[Body | None, Body | None]:
    slopes = torch.rand(H).to(torch.bfloat16)

    def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + slopes[h] * (kv_idx - q_idx).float()

    return alibi, causal


def relative_table() -> tuple[Body | None, Body | None]:
    table = torch.randn(H, 2 * S)
    return lambda score, b, h, q_idx, kv_idx: score + table[h, q_idx - kv_idx + S], None


def pair_bias() -> tuple[Body | None, Body | None]:
    bias = torch.randn(B, 1, S, S).expand(B, H, S, S)
    return lambda score, b, h, q_idx, kv_idx: score + bias[b, h, q_idx, kv_idx], None


def additive_mask() -> tuple[Body | None, Body | None]:
    """As models pass it: 0 where allowed, -inf elsewhere; one row of it has no key at all."""
    mask = torch.where(torch.rand(B, 1, S, S) < 0.5, 0.0, -math.inf)
    mask[1, 0, 4] = -math.inf
    return lambda score, b, h, q_idx, kv_idx: score + mask[b, 0, q_idx, kv_idx], None


def soft_cap() -> tuple[Body | None, Body | None]:
    cap = 3.0
    return lambda score, b, h, q_idx, kv_idx: cap * torch.tanh(score / cap), causal


def soft_cap_in_window() -> tuple[Body | None, Body | None]:
    def tanh_softcap(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any, *, cap: int) -> Any:
        score = score / cap
        score = torch.tanh(score)
        return score * cap

    return partial(tanh_softcap, cap=5), window_of(24)


def neighborhood_2d() -> tuple[Body | None, Body | None]:
    width, height, kernel = 10, 7, 5

    def coordinates(index: Any) -> tuple[Any, Any]:
        return index // width, index % width

    def natten(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        (q_y, q_x), (kv_y, kv_x) = coordinates(q_idx), coordinates(kv_idx)
        center_y = q_y.clamp(kernel // 2, height - 1 - kernel // 2)
        center_x = torch.clamp(q_x, kernel // 2, width - 1 - kernel // 2)
        near_x = (center_x - kv_x).abs() <= kernel // 2
        return near_x & ((center_y - kv_y).abs() <= kernel // 2)

    return None, natten


def dilated_window() -> tuple[Body | None, Body | None]:
    def dilated(b: Any, h: Any, q_idx: Any, kv_idx: Any, size: int = 24, dilation: int = 4) -> Any:
        distance = (q_idx - kv_idx).abs()
        return (distance <= size) & (distance % dilation == 0)

    return None, dilated


def sink_and_window() -> tuple[Body | None, Body | None]:
    sink, size = 4, 16

    def streaming(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx >= kv_idx) & ((kv_idx < sink) | (q_idx - kv_idx < size))

    return None, streaming


def windows_of_heads() -> tuple[Body | None, Body | None]:
    sizes = torch.tensor([2, 8, 32, 128])
    return None, lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (q_idx - kv_idx < sizes[h])


def key_padding() -> tuple[Body | None, Body | None]:
    keep = torch.rand(B, S) < 0.7
    return None, lambda b, h, q_idx, kv_idx: keep[b, kv_idx]


def sequence_lengths() -> tuple[Body | None, Body | None]:
    """The second sequence is empty: none of its rows has a key."""
    lengths = torch.tensor([51, 0])

    def padding(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx < lengths[b]) & (kv_idx < lengths[b])

    return None, and_masks(causal, padding)


def modality_spans() -> tuple[Body | None, Body | None]:
    """Causal text with images that see all of themselves: the spans are Python numbers, the loop is unrolled."""
    spans = [(5, 12), (40, 20)]

    def transfusion(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        mask = q_idx >= kv_idx
        for offset, length in spans:
            in_q = (q_idx >= offset) & (q_idx < offset + length)
            in_kv = (kv_idx >= offset) & (kv_idx < offset + length)
            mask = mask | (in_q & in_kv)
        return mask

    return None, transfusion


def images_before_text() -> tuple[Body | None, Body | None]:
    """Each text token sees the image that came last before it."""
    image_of_token = torch.randint(0, 7, (S,), dtype=torch.int16).sort().values
    tokens_of_image = 10
    return None, lambda b, h, q_idx, kv_idx: kv_idx // tokens_of_image == image_of_token[q_idx]


def pages() -> tuple[Body | None, Body | None]:
    """A paged cache: physical positions are mapped to logical ones; pages that hold nothing are -1."""
    page = 10
    logical = torch.stack([torch.randperm(7), torch.randperm(7)])
    logical[1, 3] = -1

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        block = logical[b, kv_idx // page]
        return torch.where(block >= 0, causal(b, h, q_idx, block * page + kv_idx % page), False)

    return None, mask_mod


def offset_tensor() -> tuple[Body | None, Body | None]:
    """Decoding as in published code: the position of the first query is a tensor of one element."""
    offset = torch.tensor(3)
    return None, lambda b, h, q_idx, kv_idx: causal(b, h, q_idx + offset, kv_idx)


def block_diffusion() -> tuple[Body | None, Body | None]:
    half, block = S // 2, 5

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        clean_q, clean_kv = q_idx >= half, kv_idx >= half
        block_q = torch.where(clean_q, (q_idx - half) // block, q_idx // block)
        block_kv = torch.where(clean_kv, (kv_idx - half) // block, kv_idx // block)
        diagonal = (block_q == block_kv) & (clean_q == clean_kv)
        offset_causal = (block_q > block_kv) & clean_kv & ~clean_q
        return diagonal | offset_causal | ((block_q >= block_kv) & clean_kv & clean_q)

    return None, mask_mod


class DistanceDecay(nn.Module):
    """A score_mod that is a module with a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.rand(H))
        self.register_buffer("limit", torch.tensor(40))

    def forward(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        distance = torch.minimum((q_idx - kv_idx).abs(), self.limit)
        return score - self.rate[h] * torch.log1p(distance)


def module_body() -> tuple[Body | None, Body | None]:
    return DistanceDecay(), causal


def learned_scale() -> tuple[Body | None, Body | None]:
    temperature, sink = nn.Parameter(torch.tensor(1.7)), nn.Parameter(torch.randn(H))

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return torch.where(kv_idx == 0, sink[h], score * temperature)

    return score_mod, causal


LIMIT = 33


def global_number() -> tuple[Body | None, Body | None]:
    return None, lambda b, h, q_idx, kv_idx: q_idx - kv_idx < LIMIT


def stripes() -> tuple[Body | None, Body | None]:
    return None, or_masks(
        and_masks(causal, lambda b, h, q_idx, kv_idx: q_idx % 3 == kv_idx % 3),
        lambda b, h, q_idx, kv_idx: ~(q_idx != kv_idx),
    )


CASES = (
    plain,
    causal_mask,
    causal_by_score,
    sliding_window,
    two_sided_window,
    prefix_lm,
    document_mask,
    packed_documents,
    documents_with_offsets,
    jagged_relative_bias,
    alibi_formula,
    alibi_tensor,
    relative_table,
    pair_bias,
    additive_mask,
    soft_cap,
    soft_cap_in_window,
    neighborhood_2d,
    dilated_window,
    sink_and_window,
    windows_of_heads,
    key_padding,
    sequence_lengths,
    modality_spans,
    images_before_text,
    pages,
    offset_tensor,
    block_diffusion,
    module_body,
    learned_scale,
    global_number,
    stripes,
)
