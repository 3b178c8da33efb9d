"""The mask of one call of a layer: turns the arguments transformers gives beside and instead of a mask into one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attncompiler.integrations.conditions import (
    Causal,
    Condition,
    Everything,
    Near,
    Overlay,
    SameSequence,
    Window,
    both,
    contains,
)
from attncompiler.integrations.errors import ModelMaskError
from attncompiler.integrations.transformers_layer import Layer
from attncompiler.integrations.transformers_masks import ModelMask


def mask_of_call(
    layer: Layer,
    query: Tensor,
    key: Tensor,
    given: ModelMask | Tensor | None,
    is_causal: bool | None,
    window: int | None,
    others: Mapping[str, Any],
) -> ModelMask:
    """The mask of this call, in which the arguments beside ``attention_mask`` have their say as well.

    An array [B|1, H|1, M, N] as ``given`` says everything itself, as in transformers' own attention; its elements are
    not part of the result. Raises ModelRequestError for arguments that contradict the mask, ModelMaskError for a mask
    of another size.
    """
    queries, keys = query.shape[2], key.shape[2]
    if isinstance(given, ModelMask):
        mask = given
        if (mask.queries, mask.given_keys) != (queries, keys):
            made = f"{mask.queries} queries and {mask.given_keys} keys"
            raise ModelMaskError(
                location=None,
                layer=layer.name,
                detail=f"it is for {made}, the layer has {queries} and {keys}",
                fix='load this model with attn_implementation="eager"',
            )
        _check_agreement(layer, mask, is_causal, window)
    else:
        causal = layer.is_causal if is_causal is None else is_causal
        condition = Everything() if given is not None else _own(layer, query, key, causal, window)
        newest = causal and queries == 1  # a single query is the last token
        mask = ModelMask(
            condition,
            batch=query.shape[0],
            queries=queries,
            keys=keys,
            given_keys=keys,
            q_start=max(keys - 1, 0) if newest else 0,
            key_offset=0,
        )
    return _packed(layer, mask, others)


def elements(
    layer: Layer, mask: ModelMask | Tensor | None, query: Tensor, keys: int
) -> Tensor | None:
    """The mask as the array [B|1, H|1, M, N] that the caller gave, cut to the keys; None if it is no array."""
    if mask is None or isinstance(mask, ModelMask):
        return None
    batch, heads, queries, _ = query.shape
    found = f"of type {type(mask).__name__}"
    if isinstance(mask, Tensor):
        found = f"an array of {list(mask.shape)} and {mask.dtype}"
        sizes = mask.dim() == 4 and mask.shape[2] in (1, queries) and mask.shape[3] >= keys
        kinds = mask.dtype == torch.bool or mask.is_floating_point()
    if not isinstance(mask, Tensor) or not sizes or not kinds:
        wanted = f"[{batch} or 1, {heads} or 1, {queries}, {keys}]"
        raise ModelMaskError(
            location=None,
            layer=layer.name,
            detail=f"it is {found}, expected {wanted}, bool or float",
            fix="pass attention_mask as [batch, length], or as four axes of bool (True allows) or of numbers to add",
        )
    return mask[..., :keys].expand(-1, -1, queries, -1)


def _check_agreement(
    layer: Layer, mask: ModelMask, is_causal: bool | None, window: int | None
) -> None:
    if is_causal is not None and is_causal != mask.causal and mask.queries > 1:
        layer.refuse(
            f"is_causal={is_causal}",
            f"and for a mask that is {'causal' if mask.causal else 'bidirectional'}",
            "set config.is_causal, by which transformers makes the mask, and leave the argument out",
        )
    if window is not None and not any(contains(mask.condition, c) for c in (Window, Near, Overlay)):
        layer.refuse(
            f"sliding_window={window}",
            "and for a mask without a window",
            'load this model with attn_implementation="eager", which follows the mask',
        )


def _own(layer: Layer, query: Tensor, key: Tensor, causal: bool, window: int | None) -> Condition:
    """What a layer asks for that was given no mask at all."""
    queries, keys = query.shape[2], key.shape[2]
    if queries != keys and (window is not None or (causal and queries > 1)):
        request = f"sliding_window={window}" if window is not None else "is_causal"
        layer.refuse(
            f"{request} with {queries} queries and {keys} keys",
            "and without a mask nobody knows where the queries lie among the keys",
            "pass an attention_mask" + ("" if window is not None else ", or is_causal=False"),
        )
    parts: list[Condition] = [Causal()] if causal and queries > 1 else []
    if window is not None:
        parts.append(Window(int(window)) if causal else Near(int(window)))
    return both(*parts)


def _packed(layer: Layer, mask: ModelMask, others: Mapping[str, Any]) -> ModelMask:
    """The mask, with sequences kept apart as ``cu_seq_lens_q`` or ``seq_idx`` ask for it."""
    bounds, other, ids = (others.get(n) for n in ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"))
    asked = bounds is not None or other is not None or ids is not None
    layer.check_pass(mask, None if asked else others.get("position_ids"))
    if mask.packed or not asked:
        return mask
    square = mask.queries == mask.given_keys and mask.key_offset == 0 and mask.q_start == 0
    same = bounds is other or (
        bounds is not None and other is not None and torch.equal(bounds, other)
    )
    if not square or not same or (bounds is not None and mask.batch != 1):
        layer.refuse(
            "seq_idx" if bounds is None and other is None else "cu_seq_lens_q",
            "which is honoured where queries and keys are the same packed sequences, in one row and without a cache",
            "pass position_ids that start over at each sequence, and use_cache=False",
        )
    if bounds is not None:
        places = torch.arange(mask.queries, device=bounds.device)
        ids = torch.searchsorted(bounds[1:].contiguous(), places, right=True)[None]
    assert ids is not None
    return mask.narrowed(SameSequence(ids))
