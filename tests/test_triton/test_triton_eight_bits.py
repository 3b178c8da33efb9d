"""8-bit floats as inputs: results are those of the numbers they hold, as exact as bfloat16 attention on these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attncompiler
from attncompiler.cases import Case
from attncompiler.dsl import Tensor as Input
from attncompiler.dsl import Variant, causal, document, maximum
from attncompiler.variant_file import load_variant
from tests.triton_calls import checker, engine_of, failures, use_tiles

EXAMPLES = Path(__file__).parents[2] / "examples"
DTYPES = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
CASE = Case(B=1, H=4, G=2, M=37, N=70, D=24, Dv=40, q_start=33)


class Plain(Variant):
    """No mask, no term: what a kernel does at least."""


class Documents(Variant):
    """Tiles from lists, and features that are read back: an output of the largest one."""

    ids = Input("k", dtype="int")
    gain = Input("h", "d")

    def mask(self, at: Any) -> Any:
        return causal(at) & document(at, self.ids)

    def output(self, out: Any, at: Any) -> Any:
        return maximum(out, out * self.gain[at.h, at.d])


# Softmax, terms of scores, weights that are not bounded, normalizers with passes of their own, several accumulators.
@pytest.mark.parametrize(
    ("name", "turn"),
    [(n, i % 2) for i, n in enumerate((
        "alibi", "sigmoid", "reluformer", "standardized_softmax", "learned_sink", "affine_scaled", "t5_bias", "cog",
    ))],
)  # fmt: skip
def test_examples(name: str, turn: int) -> None:
    mine = checker(load_variant(EXAMPLES / f"{name}.py"))
    use_tiles(mine.operator, 32, 32)
    assert not failures(mine, [replace(CASE, dtype=DTYPES[turn])], gradients=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [Plain, Documents])
def test_types(variant: type[Variant], dtype: str) -> None:
    mine = checker(variant)
    use_tiles(mine.operator, 16, 32)
    assert not failures(mine, [replace(CASE, dtype=dtype)], gradients=False)
