"""Models of transformers give the logits, gradients and tokens of eager attention with a generated operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers_models import make, padding, tokens

from attncompiler.dsl import Variant
from attncompiler.integrations.transformers import register

NAME = "generated_softmax"
DECODERS = ("llama", "mistral", "gemma2", "gemma3", "qwen2", "qwen3", "gpt_oss", "llama4", "gpt2")
TWO_SIDES = ("t5", "bart", "t5gemma")

pytestmark = [
    pytest.mark.usefixtures("quick_builds"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers.*"),
]


class Softmax(Variant):
    """Plain softmax attention: what eager attention does."""


@pytest.fixture(scope="module", autouse=True)
def implementation() -> Any:
    return register(Softmax, NAME)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


def close(ours: torch.Tensor, eager: torch.Tensor) -> None:
    """Two float32 runs of the same model differ by rounding alone: far less than what any mask would change."""
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4 * eager.abs().max().item())


def logits(model: Any, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**arguments)[0]


@pytest.mark.parametrize("name", [*DECODERS, "bert_decoder", "llama_bidirectional"])
def test_decoders_give_the_logits_of_eager_attention(name: str) -> None:
    model, ids = make(name), tokens()
    calls: list[dict[str, Any]] = [{"input_ids": ids}, {"input_ids": ids, "use_cache": False}]
    calls += [
        {"input_ids": ids, "attention_mask": padding(side)} for side in ("left", "right", "hole")
    ]
    eager = [logits(model, **call) for call in calls]
    model.set_attn_implementation(NAME)
    for call, wanted in zip(calls, eager, strict=True):
        seen = call.get("attention_mask", torch.ones_like(ids)).bool()
        close(logits(model, **call)[seen], wanted[seen])


def test_a_call_may_ask_for_both_directions() -> None:
    ids = tokens()
    wanted = logits(make("llama_bidirectional"), input_ids=ids, use_cache=False)
    close(logits(make("llama", NAME), input_ids=ids, use_cache=False, is_causal=False), wanted)


@pytest.mark.parametrize("name", ["llama", "mistral", "llama4"])
def test_packed_sequences_stay_apart(name: str) -> None:
    model, ids = make(name), tokens(1)
    lengths = (7, 10)
    call = {
        "input_ids": ids,
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "use_cache": False,
    }
    wanted = torch.cat([logits(model, input_ids=part) for part in ids.split(lengths, 1)], 1)
    model.set_attn_implementation(NAME)
    close(logits(model, **call), wanted)
    # The boundaries alone, as DataCollatorWithFlattening hands them over for kernels of variable lengths.
    bounds = torch.tensor([0, 7, 17], dtype=torch.int32)
    extra = {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": 10,
        "max_length_k": 10,
    }
    close(logits(model, **call, **extra), wanted)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("heads", [1, 4])
def test_a_mask_of_four_axes_says_everything(dtype: torch.dtype, heads: int) -> None:
    model, ids = make("mistral"), tokens()
    allowed = (torch.rand(2, heads, 17, 17) > 0.5) | torch.eye(17, dtype=torch.bool)
    added = torch.where(allowed, torch.randn(2, heads, 17, 17), torch.finfo(torch.float32).min)
    hard = torch.zeros(()).where(allowed, torch.finfo(torch.float32).min)
    wanted = logits(model, input_ids=ids, attention_mask=hard if dtype == torch.bool else added)
    model.set_attn_implementation(NAME)
    given = allowed if dtype == torch.bool else added
    close(logits(model, input_ids=ids, attention_mask=given), wanted)


@pytest.mark.parametrize("name", DECODERS)
def test_generation_gives_the_tokens_of_eager_attention(name: str) -> None:
    """With a growing cache (sliding where the model slides), a static one, and left padding."""
    model, ids = make(name), tokens()
    call = {"attention_mask": padding("left"), "max_new_tokens": 8, "min_new_tokens": 8}
    wanted = model.generate(ids, do_sample=False, **call)
    model.set_attn_implementation(NAME)
    for cache in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        assert model.generate(ids, do_sample=False, **call, **cache).equal(wanted), cache


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_encoders_give_the_logits_of_eager_attention(name: str) -> None:
    model, ids = make(name), tokens()
    masks = [padding(side) for side in ("none", "left", "right", "hole")]
    eager = [logits(model, input_ids=ids, attention_mask=mask) for mask in masks]
    model.set_attn_implementation(NAME)
    for mask, wanted in zip(masks, eager, strict=True):
        ours = logits(model, input_ids=ids, attention_mask=mask)
        close(ours[mask.bool()], wanted[mask.bool()])


@pytest.mark.parametrize("name", TWO_SIDES)
def test_encoders_with_decoders_give_the_logits_and_tokens_of_eager_attention(name: str) -> None:
    model, ids, decoder = make(name), tokens(), tokens(length=6)
    masks = [padding(side) for side in ("none", "right", "hole")]
    eager = [
        logits(model, input_ids=ids, attention_mask=mask, decoder_input_ids=decoder)
        for mask in masks
    ]
    call = {"attention_mask": masks[1], "max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 2}
    written = model.generate(ids, do_sample=False, **call)
    model.set_attn_implementation(NAME)
    for mask, wanted in zip(masks, eager, strict=True):
        close(logits(model, input_ids=ids, attention_mask=mask, decoder_input_ids=decoder), wanted)
    assert model.generate(ids, do_sample=False, **call).equal(written)


@pytest.mark.parametrize("name", ["vit", "siglip", "whisper"])
def test_images_and_sound_need_no_mask(name: str) -> None:
    model = make(name)
    call: dict[str, Any] = {"pixel_values": torch.randn(2, 3, 16, 16)}
    if name == "whisper":
        call = {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": tokens(length=6)}
    wanted = logits(model, **call)
    model.set_attn_implementation(NAME)
    close(logits(model, **call), wanted)


def gradients(model: Any, call: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**call).loss
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), found


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt_oss", "llama4", "gpt2", "bert", "t5"])
def test_models_train_as_with_eager_attention(name: str) -> None:
    """Loss and every gradient, sinks, T5's table of biases and soft-capped scores among them; checkpointed too."""
    changes = (
        {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0} if name == "bert" else {}
    )
    model = make(name, **changes).train()
    ids, mask = tokens(), padding("left" if name != "t5" else "right")
    # A padded row sees nothing here and everything in eager attention, so no loss may come from one.
    labels = ids.masked_fill(mask == 0, -100).index_fill(1, torch.tensor([5]), -100)
    call = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    loss, wanted = gradients(model, call)
    model.set_attn_implementation(NAME)
    ours, found = gradients(model, call)
    assert ours == pytest.approx(loss, rel=1e-5)
    assert found.keys() == wanted.keys()
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-5 * largest)
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable()
        again, checkpointed = gradients(model, call)
        assert again == ours
        assert all(checkpointed[n].equal(g) for n, g in found.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_no_worse_than_eager_attention(dtype: torch.dtype) -> None:
    model, ids = make("gemma2"), tokens()
    exact = logits(model, input_ids=ids)
    model.to(dtype)
    eager = (logits(model, input_ids=ids).float() - exact).norm()
    model.set_attn_implementation(NAME)
    assert (logits(model, input_ids=ids).float() - exact).norm() <= 2 * eager


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's
def test_a_compiled_model_gives_the_same(implementation: Any) -> None:
    """Attention and its mask stay outside the graphs; gradients go through them."""
    model, ids, mask = make("mistral", NAME, num_hidden_layers=1), tokens(), padding("left")
    call = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    wanted = model(**call).logits
    known = dict(implementation.operators)
    torch._dynamo.reset()
    ours = torch.compile(model, backend="aot_eager")(**call).logits
    close(ours[mask.bool()], wanted[mask.bool()])
    weight = model.model.layers[0].self_attn.k_proj.weight
    (expected,) = torch.autograd.grad(wanted.square().sum(), weight)
    (found,) = torch.autograd.grad(ours.square().sum(), weight)
    close(found, expected)
    assert implementation.operators == known


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that torch made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.numel = max(self.numel, *(x.untyped_storage().size() for x in made), 0)
        return result


@pytest.mark.parametrize("name", ["mistral", "llama4", "bert"])
def test_nothing_of_queries_times_keys_is_made(name: str) -> None:
    length = 2048
    model = make(name, NAME, num_hidden_layers=1, max_position_embeddings=length)
    call = {"input_ids": tokens(1, length), "attention_mask": padding("hole", 1, length)}
    with Largest() as largest:
        logits(model, **call)
    assert 0 < largest.numel < length * length


def test_no_length_and_no_window_builds_anything_new(implementation: Any) -> None:
    first, second = make("mistral", NAME), make("mistral", NAME, sliding_window=3)
    logits(first, input_ids=tokens())
    known = dict(implementation.operators)
    logits(first, input_ids=tokens(1, 23))
    logits(second, input_ids=tokens(3, 9))
    assert implementation.operators == known
