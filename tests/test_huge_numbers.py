"""Run-time numbers near the ends of 64 bits, in masks whose own arithmetic does not overflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attncompiler import compile as compile_variant
from attncompiler.dsl import Tensor, Variant, causal

END = 2**63
MASKS: dict[str, Callable[[Any, Any], Any]] = {
    "two numbers": lambda self, at: at.k - self.s < self.w,
    "causal, two numbers": lambda self, at: causal(at) & (at.q - at.k - self.s < self.w),
    "lengths": lambda self, at: at.k - at.q + at.N - at.M <= self.w,
    "a number and a constant": lambda self, at: at.k + self.s < 5,
    "planned": lambda self, at: at.q - self.ids[at.k] - 7 < self.w,
}


@pytest.mark.parametrize(
    ("name", "s", "w"),
    [
        ("two numbers", 10, END - 1),
        ("two numbers", 2**62 + 5, 2**62),
        ("two numbers", 2**62 + 5, -(2**62)),
        ("causal, two numbers", 10, END - 1),
        ("lengths", 0, END - 1),
        ("a number and a constant", -END, 0),
        ("planned", 0, END - 1),
    ],
)
@pytest.mark.parametrize(("queries", "keys"), [(50, 40), (300, 260)])
def test_conditions_do_not_overflow_before_the_mask_does(
    name: str, s: int, w: int, queries: int, keys: int
) -> None:
    class Huge(Variant):
        s: int = 0
        w: int = 0
        ids = Tensor("k", dtype=int)
        mask = MASKS[name]

    q, k, v = (torch.randn(1, 2, n, 8) for n in (queries, keys, keys))
    found, wanted = (
        compile_variant(Huge, backend=backend)(q, k, v, s=s, w=w, ids=torch.arange(keys))
        for backend in ("cpp", "dense")
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
