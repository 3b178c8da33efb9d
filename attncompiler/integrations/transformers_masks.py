"""Turns the masks that transformers builds for its models into conditions on a pair; no M x N array is made.

transformers describes a mask as a function of four indices and offers it to the function registered for the model's
attention implementation (AttentionMaskInterface). Its own functions are recognised by what they are, a user's overlay
(``or_mask_function``, ``and_mask_function``) is traced.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import masking_utils

from attncompiler.integrations.conditions import (
    Allowed,
    Both,
    Causal,
    Chunk,
    Condition,
    Either,
    Everything,
    Moved,
    Near,
    Overlay,
    SameBlock,
    SameSequence,
    Span,
    Window,
    both,
    contains,
    counts_from_the_start,
    forbids_later_keys,
)
from attncompiler.integrations.errors import ModelMaskError


class ModelMask:
    """The mask of one kind of layer in one forward pass: what the attention function gets as ``attention_mask``.

    ``condition`` speaks of positions in the sequence. ``q_start`` is the position of the first query counted from the
    first key, ``key_offset`` that of the first key in the sequence. Keys from ``keys`` on cannot be allowed and need
    not be read. ``checked`` says that a layer has looked at what else the pass asks for.

    Models hand it on to their layers. One that computes with it, as if it were an array, gets a ModelMaskError.
    """

    def __init__(
        self,
        condition: Condition,
        *,
        batch: int,
        queries: int,
        keys: int,
        given_keys: int,
        q_start: int,
        key_offset: int,
    ) -> None:
        self.condition = condition
        self.batch, self.queries, self.keys = batch, queries, keys
        self.given_keys, self.q_start, self.key_offset = given_keys, q_start, key_offset
        self.checked = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, 1, queries, keys), as of a mask tensor."""
        return (self.batch, 1, self.queries, self.given_keys)

    @property
    def ndim(self) -> int:
        """Four axes."""
        return 4

    @property
    def packed(self) -> bool:
        """Whether it keeps several sequences in a row apart."""
        return contains(self.condition, SameSequence)

    @property
    def causal(self) -> bool:
        """Whether it was made for causal attention."""
        return contains(self.condition, Causal)

    def narrowed(self, condition: Condition) -> ModelMask:
        """The same mask without the pairs that ``condition`` forbids."""
        return ModelMask(
            both(self.condition, condition),
            batch=self.batch,
            queries=self.queries,
            keys=self.keys,
            given_keys=self.given_keys,
            q_start=self.q_start,
            key_offset=self.key_offset,
        )

    def contiguous(self) -> ModelMask:
        """Itself: ``generate`` asks tensors for it."""
        return self

    def to(self, *where: object, **named: object) -> ModelMask:
        """Itself: conditions lie where the model lies."""
        return self

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> NoReturn:
        cls._refuse(f"computes with its mask ({getattr(func, '__name__', func)})")

    def __getattr__(self, name: str) -> NoReturn:
        if hasattr(Tensor, name):
            self._refuse(f"asks its mask for {name}")
        raise AttributeError(f"'ModelMask' object has no attribute {name!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelMask):
            self._refuse("compares its mask")
        return self is other

    __hash__ = object.__hash__

    @staticmethod
    def _refuse(what: str) -> NoReturn:
        raise ModelMaskError(
            location=None,
            layer="this model",
            detail=f"the model {what} as if it were an array of queries x keys, and there is none",
            fix='load this model with attn_implementation="eager" or "sdpa"',
        )

    def __repr__(self) -> str:
        return f"ModelMask({self.condition}, shape={self.shape}, q_start={self.q_start})"


def _computed(self: ModelMask, *others: object) -> NoReturn:
    self._refuse("computes with its mask")


for _name in ("getitem", "setitem", "bool", "len", "iter", "invert", "neg", "lt", "le", "gt", "ge"):
    setattr(ModelMask, f"__{_name}__", _computed)
for _name in ("add", "sub", "mul", "truediv", "and", "or", "xor"):
    setattr(ModelMask, f"__{_name}__", _computed)
    setattr(ModelMask, f"__r{_name}__", _computed)


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Any = masking_utils.causal_mask_function,
    attention_mask: Tensor | ModelMask | None = None,
    **hints: Any,
) -> ModelMask:
    """What AttentionMaskInterface calls: the sizes and the mask function of one kind of layer, and the padding.

    ``attention_mask`` [B, length] (bool) is the padding of the whole sequence, or a mask that was made before (by
    ``generate``, for a static cache), which is the result. ``hints`` (dtype, device, whether a mask may be skipped,
    use_vmap) say how to build an array, and none is built.
    """
    if isinstance(attention_mask, ModelMask):
        return attention_mask
    offset, first_query = int(kv_offset), int(q_offset)
    condition = read(mask_function)
    keys = kv_length
    if forbids_later_keys(condition):
        keys = min(kv_length, first_query + q_length - offset)
    if attention_mask is not None:
        condition = both(condition, _padding(attention_mask, offset, keys))
    return ModelMask(
        condition,
        batch=batch_size,
        queries=q_length,
        keys=keys,
        given_keys=kv_length,
        q_start=first_query - offset,
        key_offset=offset,
    )


def _padding(allowed: Tensor, offset: int, keys: int) -> Condition:
    """The condition of a padding mask [B, length] on the keys at positions offset .. offset + keys - 1.

    Keys after the end of the mask are padding. Rows with padding at their ends only become a span each, by which whole
    tiles of keys are left out.
    """
    allowed = allowed.bool()
    seen = allowed[:, offset : offset + keys]
    if seen.shape[1] == keys and bool(seen.all()):
        return Everything()
    count = seen.sum(-1)
    first = seen.int().argmax(-1) if seen.shape[1] else torch.zeros_like(count)
    past = first + count
    position = torch.arange(seen.shape[1], device=seen.device)
    inside = (position >= first[:, None]) & (position < past[:, None])
    if bool((inside == seen).all()):
        return Span(first, past)
    missing = offset + keys - allowed.shape[1]
    return Allowed(torch.nn.functional.pad(allowed, (0, missing)) if missing > 0 else allowed)


def read(function: Any) -> Condition:
    """The condition a mask function of transformers, or of a user, stands for.

    Raises ModelMaskError for one that is no plain Python function, or one of transformers' own that is not known here.
    """
    if function is masking_utils.causal_mask_function:
        return Causal()
    if function is masking_utils.bidirectional_mask_function:
        return Everything()
    if not isinstance(function, FunctionType):
        _unknown(function, "is no plain Python function")
    if function.__module__ != masking_utils.__name__:
        return Overlay(function)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    known = {name: cell.cell_contents for name, cell in cells}
    match function.__qualname__.split(".")[0]:
        case "and_masks":
            return both(*map(read, known["mask_functions"]))
        case "or_masks":
            return Either(tuple(map(read, known["mask_functions"])))
        case "sliding_window_overlay":
            return Window(int(known["sliding_window"]))
        case "sliding_window_bidirectional_overlay":
            return Near(int(known["sliding_window"]))
        case "chunked_overlay":
            return Chunk(int(known["chunk_size"]), known["left_padding"])
        case "blockwise_overlay":
            return SameBlock(known["block_sequence_ids"])
        case "padding_mask_function":
            return Allowed(known["padding_mask"].bool())
        case "packed_sequence_mask_function":
            return SameSequence(known["packed_sequence_mask"])
        case "remap_positions_for_packed_sequence":
            return _moved(read(known["mask_function"]), known["position_ids"])
    return _unknown(function, "is not known to this version of attncompiler")


def _moved(inner: Condition, positions: Tensor) -> Condition:
    """The condition on positions that start over in each packed sequence.

    Inside one sequence these differ from positions in the row by one distance, which most conditions do not see; pairs
    of different sequences are forbidden beside it.
    """
    if isinstance(inner, Both):
        return both(*(_moved(part, positions) for part in inner.parts))
    return Moved(inner, positions) if counts_from_the_start(inner) else inner


def _unknown(function: Any, why: str) -> NoReturn:
    name = getattr(function, "__qualname__", repr(function))
    raise ModelMaskError(
        location=None,
        layer="this model",
        detail=f"the mask function {name} {why}",
        fix="write it as a function of (batch_idx, head_idx, q_idx, kv_idx) that compares its arguments, "
        'or load the model with attn_implementation="eager"',
    )
