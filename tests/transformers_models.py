"""Tiny random models of transformers: turns a name into a model whose attention is far from uniform."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

VOCABULARY = 99
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    **TOKENS,
}
ENCODER = {k: v for k, v in DECODER.items() if k not in ("num_key_value_heads", "head_dim")}
TWO_SIDES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    **TOKENS,
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
}
ONE_OF_EACH = ["sliding_attention", "full_attention"]
GEMMA = {**DECODER, "sliding_window": 5, "attn_logit_softcapping": 2.0}

CONFIGS: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**DECODER),
    "llama_bidirectional": lambda: hf.LlamaConfig(**DECODER, is_causal=False),
    "mistral": lambda: hf.MistralConfig(**DECODER, sliding_window=5),
    "gemma2": lambda: hf.Gemma2Config(**GEMMA, query_pre_attn_scalar=7),
    "gemma3": lambda: hf.Gemma3TextConfig(**DECODER, sliding_window=5, layer_types=ONE_OF_EACH),
    "qwen2": lambda: hf.Qwen2Config(
        **DECODER, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": lambda: hf.Qwen3Config(**DECODER),
    "gpt_oss": lambda: hf.GptOssConfig(
        **DECODER, sliding_window=5, num_local_experts=4, num_experts_per_tok=2
    ),
    "llama4": lambda: hf.Llama4TextConfig(
        **DECODER,
        attention_chunk_size=6,
        num_local_experts=2,
        num_experts_per_tok=1,
        intermediate_size_mlp=64,
    ),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=64,
        scale_attn_by_inverse_layer_idx=True,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        **TOKENS,
    ),
    "bert_decoder": lambda: hf.BertConfig(**ENCODER, is_decoder=True),
    "bert": lambda: hf.BertConfig(**ENCODER),
    "modernbert": lambda: hf.ModernBertConfig(
        **ENCODER | {"num_hidden_layers": 4}, local_attention=6, cls_token_id=1, sep_token_id=2
    ),
    "t5": lambda: hf.T5Config(
        vocab_size=VOCABULARY,
        d_model=64,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
    ),
    "t5gemma": lambda: hf.T5GemmaConfig(
        encoder=GEMMA, decoder=GEMMA | {"cross_attention_hidden_size": 64}, vocab_size=VOCABULARY
    ),
    "bart": lambda: hf.BartConfig(**TWO_SIDES, max_position_embeddings=64, dropout=0.0),
    "whisper": lambda: hf.WhisperConfig(
        **TWO_SIDES,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=64,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    ),
    "vit": lambda: hf.ViTConfig(**VISION),
    "siglip": lambda: hf.SiglipVisionConfig(**VISION),
}
CLASSES: dict[str, Any] = {
    "bert_decoder": hf.BertLMHeadModel,
    "bert": hf.BertForMaskedLM,
    "modernbert": hf.ModernBertForMaskedLM,
    "t5": hf.T5ForConditionalGeneration,
    "t5gemma": hf.T5GemmaForConditionalGeneration,
    "bart": hf.BartForConditionalGeneration,
    "whisper": hf.WhisperForConditionalGeneration,
    "vit": hf.ViTModel,
    "siglip": hf.SiglipVisionModel,
}


def make(name: str, implementation: str = "eager", **changes: Any) -> Any:
    """The model in evaluation mode, its weights the same at every call; ``changes`` go into the config."""
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    cls = CLASSES.get(name, hf.AutoModelForCausalLM)
    build = cls.from_config if cls is hf.AutoModelForCausalLM else cls._from_config
    model = build(config, attn_implementation=implementation)
    for weight in model.parameters():
        if weight.dim() >= 2:
            torch.nn.init.normal_(weight, std=0.15)
    return model.eval()


def tokens(batch: int = 2, length: int = 17) -> torch.Tensor:
    """Token ids [batch, length] that are no special tokens."""
    return torch.randint(3, VOCABULARY, (batch, length))


def padding(side: str, batch: int = 2, length: int = 17) -> torch.Tensor:
    """An attention mask [batch, length] whose first row is padded on one side, or has a hole."""
    mask = torch.ones((batch, length), dtype=torch.long)
    match side:
        case "left":
            mask[0, :5] = 0
        case "right":
            mask[0, -4:] = 0
        case "hole":
            mask[0, 3:7] = 0
    return mask


class Layer(nn.Module):
    """An attention layer as attention functions see one."""

    num_key_value_groups = 2
    is_causal = True

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = hf.LlamaConfig(**config)


def inputs(queries: int = 13, keys: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    """Four query heads on two key/value heads of dimension 16."""
    return torch.randn(2, 4, queries, 16), *torch.randn(2, 2, 2, keys, 16).unbind()


def mistral_config(implementation: str) -> Any:
    """A config with a window and a chunk, for making masks."""
    return hf.LlamaConfig(
        sliding_window=4, attention_chunk_size=5, attn_implementation=implementation
    )
