"""What a model's config and a call ask for joins the user's variant, or is refused by an error that names it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers import masking_utils as masks
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers_models import Layer, inputs, make, mistral_config, padding, tokens

from attncompiler import dsl
from attncompiler.dsl import Variant, causal, log, sigmoid, to_float
from attncompiler.integrations.errors import (
    LayerTensorError,
    ModelMaskError,
    ModelRequestError,
    RegistrationError,
)
from attncompiler.integrations.transformers import register
from attncompiler.runtime.errors import VariantTypeError

pytestmark = pytest.mark.usefixtures("quick_builds")

NAME = "generated"
SCALE = 0.3


class Softmax(Variant):
    """Plain softmax attention."""


class Swat(Variant):
    """Sigmoid weights with slopes of both signs, in a window of its own."""

    window: int = 6
    slope = dsl.Tensor("h")

    def score(self, s: Any, at: Any) -> Any:
        return s + self.slope[at.h] * (at.q - at.k)

    def mask(self, at: Any) -> Any:
        return causal(at) & (at.q - at.k < self.window)

    def normalize(self, s: Any, row: Any) -> Any:
        return sigmoid(s)


class SinkSigmoid(Variant):
    """A normalizer of its own that has a place for sinks."""

    sink = dsl.Tensor("h")

    def normalize(self, s: Any, row: Any) -> Any:
        return sigmoid(s - self.sink[row.h])


class Sigmoid(Variant):
    """A normalizer of its own that has none."""

    def normalize(self, s: Any, row: Any) -> Any:
        return sigmoid(s)


class Capped(Variant):
    """Caps scores itself."""

    cap: float = 2.0

    def score(self, s: Any, at: Any) -> Any:
        return self.cap * dsl.tanh(s / self.cap)


class Scaled(Variant):
    """Has a scale of its own."""

    scale = 1.0


class LogPosition(Variant):
    """Scores that depend on where in the sequence the query is, weights that depend on how long it is."""

    def score(self, s: Any, at: Any) -> Any:
        return s * log(to_float(at.q + 2))

    def normalize(self, s: Any, row: Any) -> Any:
        return sigmoid(s - log(to_float(row.N)))


class KeyBias(Variant):
    """A number a key of the sequence."""

    bias = dsl.Tensor("k")

    def score(self, s: Any, at: Any) -> Any:
        return s + self.bias[at.k]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


def dense(
    model_mask: Tensor, scores: Tensor, v: Tensor, weight: Callable[[Tensor], Tensor]
) -> Tensor:
    """Attention with any weight function: scores [B, H, M, N], v repeated for the query heads."""
    weights = weight(scores) * model_mask
    return (weights @ v.repeat_interleave(2, 1)).transpose(1, 2)


def test_a_variant_keeps_its_score_its_normalizer_and_its_mask() -> None:
    """Its tensors come from ``tensors=`` or from attributes of the layer; the model's mask is one more condition."""
    of_layer = register(Swat, NAME)
    q, k, v = inputs()
    slope = torch.randn(4) / 4
    distance = torch.arange(13)[:, None] - torch.arange(13)
    ours = masks.create_sliding_window_causal_mask(
        hf.LlamaConfig(sliding_window=4, attn_implementation=NAME),
        torch.zeros(2, 13, 8),
        padding("left", length=13),
        None,
    )
    allowed = (distance >= 0) & (distance < 4) & padding("left", length=13).bool()[:, None, None]
    scores = SCALE * q @ k.repeat_interleave(2, 1).mT + slope[:, None, None] * distance
    wanted = dense(allowed, scores, v, torch.sigmoid)
    layer = Layer()
    layer.slope = nn.Parameter(slope)
    seen: list[nn.Module] = []

    def tensors(module: nn.Module) -> dict[str, Any]:
        seen.append(module)
        return {"slope": slope, "window": 9}

    for implementation in (of_layer, register(Swat(), NAME, tensors=tensors)):
        found = implementation(layer, q, k, v, ours, scaling=SCALE, sliding_window=4)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert seen == [layer]
    found = of_layer(layer, q, k, v, ours, scaling=SCALE)[0]
    found.square().sum().backward()
    leaf = slope.clone().requires_grad_()
    scores = SCALE * q @ k.repeat_interleave(2, 1).mT + leaf[:, None, None] * distance
    dense(allowed, scores, v, torch.sigmoid).square().sum().backward()
    torch.testing.assert_close(layer.slope.grad, leaf.grad, rtol=1e-3, atol=1e-4)


def test_a_generated_file_names_the_variant_and_what_the_model_asks_for() -> None:
    implementation = register(Swat, NAME, tensors=lambda module: {"slope": torch.zeros(4)})
    with torch.no_grad():
        make("mistral", NAME, num_hidden_layers=1)(tokens(), attention_mask=padding("left"))
    (operator,) = implementation.operators.values()
    source = operator.source(head_dim=16)
    asked = "keys in a window before the query and keys up to the query and keys inside the padding"
    for text in ("return sigmoid(s)", asked, "integrations.transformers.register"):
        assert text in " ".join(line.removeprefix("//").strip() for line in source.splitlines())
    assert asked in " ".join(operator.explain().split())


def test_sinks_go_where_the_variant_has_a_place_for_them() -> None:
    q, k, v = inputs()
    sinks = torch.randn(4)
    scores = SCALE * q @ k.repeat_interleave(2, 1).mT
    layer = Layer()
    layer.is_causal = False
    found = register(SinkSigmoid, NAME)(layer, q, k, v, None, scaling=SCALE, s_aux=sinks)[0]
    wanted = dense(torch.ones(1), scores - sinks[:, None, None], v, torch.sigmoid)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    found = register(Softmax, NAME)(layer, q, k, v, None, scaling=SCALE, s_aux=sinks)[0]
    joined = torch.cat([scores, sinks[:, None, None].expand(2, 4, 13, 1)], -1)
    wanted = dense(
        torch.ones(1), joined, torch.cat([v, 0 * v[:, :, :1]], 2), lambda s: s.softmax(-1)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_variant_that_caps_is_not_capped_again() -> None:
    q, k, v = inputs()
    layer = Layer()
    layer.is_causal = False
    call = (layer, q, k, v, None)
    once = register(Capped, NAME)(*call, scaling=3.0, softcap=2.0)[0]
    torch.testing.assert_close(once, register(Softmax, NAME)(*call, scaling=3.0, softcap=2.0)[0])
    torch.testing.assert_close(once, register(Capped, NAME)(*call, scaling=3.0)[0])


@pytest.mark.parametrize("queries", [1, 3])
def test_positions_count_from_the_start_of_a_sliding_cache(queries: int) -> None:
    """A cache that keeps the last keys only changes nothing about formulas that read positions or lengths."""
    register(LogPosition, NAME)
    model, ids = make("mistral", NAME), tokens(2, 12)
    whole, sliding = hf.DynamicCache(), hf.DynamicCache(config=model.config)
    with torch.no_grad():
        for first in (0, *range(9, 12, queries)):
            part = ids[:, first : (9 if first == 0 else first + queries)]
            wanted = model(part, past_key_values=whole).logits
            found = model(part, past_key_values=sliding).logits
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert whole.layers[0].keys.shape[2] == 12
    assert sliding.layers[0].keys.shape[2] == 4


def run(name: str, variant: Any = Softmax, training: bool = False, **call: Any) -> None:
    changes = {k: call.pop(k) for k in list(call) if k in CHANGES}
    register(variant, NAME)
    model = make(name, NAME, **changes).train(training)
    model(tokens(), **call)


def contradict(**argument: Any) -> None:
    implementation = register(Softmax, NAME)
    mask = masks.create_causal_mask(mistral_config(NAME), torch.zeros(2, 13, 8), None, None)
    implementation(Layer(), *inputs(), mask, **argument)


CHANGES = ("attention_dropout", "attn_pdrop")
BOUNDS = torch.tensor([0, 7, 17], dtype=torch.int32)
STARTS_OVER = torch.cat([torch.arange(7), torch.arange(10)])[None].expand(2, -1)
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "dropout": (
        lambda: run("llama", training=True, attention_dropout=0.1),
        "dropout=0.1 (config.attention_dropout)",
    ),
    "dropout of GPT-2": (
        lambda: run("gpt2", training=True, attn_pdrop=0.2),
        "dropout=0.2 (config.attn_pdrop)",
    ),
    "weights": (lambda: run("llama", output_attentions=True), "output_attentions"),
    "weights, argument kept back": (
        lambda: run("gpt2", output_attentions=True),
        "output_attentions",
    ),
    "head mask": (lambda: run("llama", head_mask=torch.ones(2, 4)), "head_mask"),
    "unknown argument": (lambda: run("llama", favour="recent"), "favour"),
    "causal against the mask": (lambda: contradict(is_causal=False), "is_causal=False"),
    "a window the mask has not": (lambda: contradict(sliding_window=4), "sliding_window=4"),
    "packed with a cache": (
        lambda: run("llama", position_ids=STARTS_OVER, use_cache=True),
        "position_ids that start over",
    ),
    "packed rows": (
        lambda: run("llama", cu_seq_lens_q=BOUNDS, cu_seq_lens_k=BOUNDS, use_cache=False),
        "cu_seq_lens_q",
    ),
    "soft cap of another value": (
        lambda: run("gemma2", Capped(cap=30.0)),
        "softcap=2.0 (config.attn_logit_softcapping)",
    ),
    "sinks without a place": (lambda: run("gpt_oss", Sigmoid), "sinks (s_aux)"),
    "two scales": (lambda: run("llama", Scaled), "scaling=0.25"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(what: str) -> None:
    call, named = REFUSED[what]
    with pytest.raises(ModelRequestError) as caught:
        call()
    assert f"asks for {named}" in caught.value.summary
    assert caught.value.remedy


def test_a_tensor_over_keys_needs_a_cache_that_keeps_them() -> None:
    register(KeyBias, NAME, tensors=lambda module: {"bias": torch.zeros(9)})
    model, ids = make("mistral", NAME), tokens(1, 10)
    past = model(ids[:, :9]).past_key_values
    with pytest.raises(ModelRequestError, match=r"config\.sliding_window"):
        model(ids[:, 9:], past_key_values=past)


@pytest.mark.parametrize(
    ("mask", "detail"),
    [
        (torch.ones(2, 13), r"array of \[2, 13\]"),
        (torch.ones(2, 1, 13, 13, dtype=torch.long), "torch.int64"),
        (torch.ones(2, 1, 13, 9, dtype=torch.bool), r"array of \[2, 1, 13, 9\]"),
    ],
)
def test_an_array_of_another_kind_is_no_mask(mask: Tensor, detail: str) -> None:
    with pytest.raises(ModelMaskError, match=detail):
        register(Softmax, NAME)(Layer(), *inputs(), mask)


def test_a_mask_of_another_size_is_refused() -> None:
    implementation = register(Softmax, NAME)
    mask = masks.create_causal_mask(mistral_config(NAME), torch.zeros(2, 12, 8), None, None)
    with pytest.raises(ModelMaskError, match="for 12 queries and 12 keys, the layer has 13 and 13"):
        implementation(Layer(), *inputs(), mask)


def test_without_a_mask_queries_and_keys_have_one_length() -> None:
    implementation = register(Softmax, NAME)
    with pytest.raises(ModelRequestError, match="is_causal with 5 queries and 13 keys"):
        implementation(Layer(), *inputs(5), None)
    q, k, v = inputs(1)
    found = implementation(Layer(), q, k, v, None)[0]
    wanted = eager_attention_forward(Layer(), q, k, v, None, scaling=0.25)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_models_that_compute_with_their_mask_are_refused() -> None:
    """Bloom has attention of its own, Doge adds numbers to the mask of every other implementation but one."""
    register(Softmax, NAME)
    sizes = {"vocab_size": 99, "hidden_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    bloom = hf.BloomConfig(**sizes, n_layer=1, n_head=4)
    doge = hf.DogeConfig(**sizes, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    for config in (bloom, doge):
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
        with pytest.raises(ModelMaskError, match=r"(computes with|asks) its mask.* as if it were"):
            model(tokens())


def test_models_with_attention_of_their_own_can_be_told() -> None:
    implementation = register(Softmax, NAME)
    implementation.check(make("gpt2", NAME))
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    deberta = hf.DebertaV2Model(hf.DebertaV2Config(vocab_size=99, intermediate_size=64, **sizes))
    with pytest.raises(ModelRequestError, match="DebertaV2Model asks for attn_implementation='gen"):
        implementation.check(deberta)


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m == 0,
        lambda m: m[:, :, :, :3],
        lambda m: 1.0 - m,
        lambda m: torch.zeros(2) + m,
        lambda m: torch.cat([m, m]),
        lambda m: m.bool(),
        lambda m: m.dtype,
        lambda m: not m,
    ],
)
def test_a_mask_is_no_array(use: Callable[[Any], Any]) -> None:
    register(Softmax, NAME)
    mask = masks.create_causal_mask(mistral_config(NAME), torch.zeros(2, 13, 8), None, None)
    with pytest.raises(ModelMaskError, match="as if it were an array"):
        use(mask)
    assert mask.shape == (2, 1, 13, 13)
    assert mask.contiguous() is mask
    assert not hasattr(mask, "no_attribute_of_tensors")


@pytest.mark.parametrize("name", ["eager", "sdpa", "my_flash", "a/kernel", "paged|eager", ""])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(RegistrationError):
        register(Softmax, name)


def test_only_variants_are_registered() -> None:
    with pytest.raises(VariantTypeError):
        register(math.sqrt, NAME)  # type: ignore[arg-type]


def test_a_tensor_that_nobody_gives_is_missed() -> None:
    with pytest.raises(LayerTensorError, match=r"has no tensor 'slope'(?s:.*)nn.Parameter"):
        run("llama", Swat)
