"""The cases of the suite: variants from the literature, each turned into rows by everything that can express it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor as Elements

from attncompiler.dsl import (
    Tensor,
    Variant,
    affine_scaled,
    alibi,
    alibi_slopes,
    causal,
    cog,
    document,
    log,
    relu_weights,
    sigmoid_weights,
    sink_softmax,
    sliding_window,
    soft_cap,
)


class Dense(Variant):
    """Softmax attention to all keys."""


class Causal(Variant):
    """Softmax attention to the past."""

    def mask(self, at: Any) -> Any:
        return causal(at)


class Window(Variant):
    """The last 512 keys (Mistral 7B)."""

    window: int = 512

    def mask(self, at: Any) -> Any:
        return causal(at) & sliding_window(at, self.window)


class Document(Variant):
    """Packed sequences, four documents of one length, causal inside each."""

    ids = Tensor("k", dtype="int")
    documents = 4

    def mask(self, at: Any) -> Any:
        return causal(at) & document(at, self.ids)

    def sample(self, sizes: dict[str, int], generator: torch.Generator) -> dict[str, Elements]:
        return {"ids": torch.arange(sizes["N"]) * self.documents // sizes["N"]}


class SoftCap(Causal):
    """Scores limited to (-cap, cap) (Gemma 2)."""

    cap: float = 50.0

    def score(self, s: Any, at: Any) -> Any:
        return soft_cap(s, self.cap)


class ALiBi(Causal):
    """Scores that fall linearly with the distance, a slope a head, the paper's."""

    slopes = Tensor("h")

    def score(self, s: Any, at: Any) -> Any:
        return alibi(s, at, self.slopes)

    def sample(self, sizes: dict[str, int], generator: torch.Generator) -> dict[str, Elements]:
        return {"slopes": torch.tensor(alibi_slopes(sizes["H"]))}


class Sink(Causal):
    """A learnable logit a head that takes weight and gives no value (gpt-oss)."""

    sink = Tensor("h")

    def normalize(self, s: Any, row: Any) -> Any:
        return sink_softmax(s, row, self.sink[row.h])


class Sigmoid(Variant):
    """Weights that each stand alone, with the bias that starts near softmax."""

    def normalize(self, s: Any, row: Any) -> Any:
        return sigmoid_weights(s, row, -log(row.N))


class ReLU(Variant):
    """Weights without an exponential, over the number of keys."""

    def normalize(self, s: Any, row: Any) -> Any:
        return relu_weights(s, row, 1 / row.N)


class Cog(Causal):
    """Weights that may be negative: the sign of the score times softmax of its size."""

    def normalize(self, s: Any, row: Any) -> Any:
        return cog(s, row)


class AffineScaled(Causal):
    """Softmax weights scaled and moved by numbers of the head."""

    alpha = Tensor("h", low=0.5, high=1.5)
    beta = Tensor("h", low=-0.001, high=0.001)

    def normalize(self, s: Any, row: Any) -> Any:
        return affine_scaled(s, row, self.alpha[row.h], self.beta[row.h])


@dataclass(frozen=True, slots=True)
class Case:
    """A variant by the name that tables and ``--only`` use."""

    name: str
    variant: Variant

    @property
    def what(self) -> str:
        """One line: what the variant does."""
        return (type(self.variant).__doc__ or "").strip()


CASES = (
    Case("dense", Dense()),
    Case("causal", Causal()),
    Case("window", Window()),
    Case("document", Document()),
    Case("soft cap", SoftCap()),
    Case("alibi", ALiBi()),
    Case("sink", Sink()),
    Case("sigmoid", Sigmoid()),
    Case("relu", ReLU()),
    Case("cog", Cog()),
    Case("affine", AffineScaled()),
)
NAMES = tuple(case.name for case in CASES)


def case(name: str) -> Case:
    """The case of that name; raises KeyError."""
    return {each.name: each for each in CASES}[name]


def chosen(names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these names in the suite's order, all of them for none."""
    return tuple(each for each in CASES if each.name in names or not names)
