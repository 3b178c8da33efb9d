"""Every mask that transformers describes is read as conditions, and gives what its array gives to eager attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import masking_utils as masks
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers_models import Layer, inputs, mistral_config, padding

from attncompiler.dsl import Variant
from attncompiler.integrations.errors import ModelMaskError
from attncompiler.integrations.transformers import register

pytestmark = pytest.mark.usefixtures("quick_builds")

NAME = "generated"
SCALE = 0.3


class Softmax(Variant):
    """Plain softmax attention."""


BLOCKS = torch.tensor([[0] * 4 + [-1] * 3 + [1] * 6, [-1] * 13])
POSITIONS = torch.cat([torch.arange(6), torch.arange(7)])[None]


def overlay(length: int) -> Callable[..., Any]:
    """An overlay with a closure: a table and a number."""
    table, far = torch.rand(2, length) > 0.3, 3

    def inner(b: Any, h: Any, q: Any, k: Any) -> Any:
        return torch.where(k < table.shape[-1], table[b, k], False) & (q - k >= far) | (q == k)

    return inner


MASKS: dict[str, Callable[..., Any]] = {
    "causal": masks.create_causal_mask,
    "sliding": masks.create_sliding_window_causal_mask,
    "chunked": masks.create_chunked_causal_mask,
    "bidirectional": masks.create_bidirectional_mask,
    "near": masks.create_bidirectional_sliding_window_mask,
    "blocks": lambda *a: masks.create_causal_mask(*a, block_sequence_ids=BLOCKS),
    "sliding_blocks": lambda *a: masks.create_sliding_window_causal_mask(
        *a, block_sequence_ids=BLOCKS
    ),
    "packed_chunks": lambda *a: masks.create_chunked_causal_mask(*a, position_ids=POSITIONS),
}


@pytest.mark.parametrize("side", ["none", "left", "right", "hole"])
@pytest.mark.parametrize("kind", MASKS)
def test_every_mask_of_transformers_is_read(kind: str, side: str) -> None:
    implementation = register(Softmax, NAME)
    q, k, v = inputs()
    given = None if side == "none" or kind == "packed_chunks" else padding(side, length=13)
    eager, ours = (
        MASKS[kind](mistral_config(n), torch.zeros(2, 13, 8), given, None) for n in ("eager", NAME)
    )
    wanted = eager_attention_forward(Layer(), q, k, v, eager, scaling=SCALE)[0]
    found = implementation(Layer(), q, k, v, ours, scaling=SCALE)[0]
    seen = torch.ones(2, 13, dtype=torch.bool)
    if eager is not None:
        seen = (eager == 0).any(-1)[:, 0].expand(2, 13)
    torch.testing.assert_close(found[seen], wanted[seen], rtol=1e-4, atol=1e-5)
    assert not found[~seen].any()


@pytest.mark.parametrize("how", ["or_mask_function", "and_mask_function"])
def test_an_overlay_is_traced_and_its_tensors_are_read_anew(how: str) -> None:
    implementation = register(Softmax, NAME)
    q, k, v = inputs()
    for _ in range(2):
        extra = {how: overlay(13)}
        arguments = (torch.zeros(2, 13, 8), padding("left", length=13), None)
        eager = masks.create_causal_mask(mistral_config("eager"), *arguments, **extra)
        ours = masks.create_causal_mask(mistral_config(NAME), *arguments, **extra)
        wanted = eager_attention_forward(Layer(), q, k, v, eager, scaling=SCALE)[0]
        found = implementation(Layer(), q, k, v, ours, scaling=SCALE)[0]
        seen = (eager == 0).any(-1)[:, 0]
        torch.testing.assert_close(found[seen], wanted[seen], rtol=1e-4, atol=1e-5)
    assert len(implementation.operators) == 1


def reads_a_global(b: Any, h: Any, q: Any, k: Any) -> Any:
    return q - k < FAR[0]


def within(far: Any) -> Callable[..., Any]:
    return lambda b, h, q, k: q - k < far[0]


FAR = [3]


@pytest.mark.parametrize(
    ("function", "detail"),
    [
        (functools.partial(reads_a_global), "is no plain Python function"),
        (reads_a_global, "reads_a_global reads a value of type list"),
        (within([3]), "reads a value of type list"),
    ],
)
def test_functions_whose_values_cannot_be_followed_are_refused(function: Any, detail: str) -> None:
    implementation = register(Softmax, NAME)
    arguments = (mistral_config(NAME), torch.zeros(2, 13, 8), None, None)

    def call() -> None:
        mask = masks.create_causal_mask(*arguments, and_mask_function=function)
        implementation(Layer(), *inputs(), mask)

    with pytest.raises(ModelMaskError, match=detail):
        call()


def test_a_block_mask_of_flex_attention_is_refused() -> None:
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 13, 13, device="cpu")
    with pytest.raises(ModelMaskError, match="of type BlockMask"):
        register(Softmax, NAME)(Layer(), *inputs(), mask)
