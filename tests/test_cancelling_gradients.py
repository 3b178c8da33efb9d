"""Gradients of rows whose terms cancel almost entirely, and the yardstick where plain PyTorch's own error is chance."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import geometric_mean
from typing import Any

import pytest
import torch

import attncompiler.oracle
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.dsl import Tensor, Variant, causal, log, relu
from attncompiler.yardstick import Comparison, judged


class Recency(Variant):
    """A weight of 1 - 2.5e-7 where a row sees one key: its gradient is what cancellation leaves, much magnified."""

    skip: int = 3
    rate = Tensor("h")

    def score(self, s: Any, at: Any) -> Any:
        return s - self.rate[at.h] * log(1.0 + (at.q - at.k))

    def mask(self, at: Any) -> Any:
        return causal(at) & ((at.q == at.k) | (at.q - at.k > self.skip))

    def normalize(self, s: Any, row: Any) -> Any:
        w = relu(s + 2.0) * relu(s + 2.0)
        return w / (row.sum(w) + 1e-6)


ONE_KEY = Case(B=1, H=2, G=2, M=5, N=1, D=64, Dv=64, q_start=64)
FEW_KEYS = Case(B=2, H=6, G=2, M=5, N=31, D=31, Dv=72)


@pytest.fixture(scope="module")
def checker() -> Checker:
    return Checker(Recency(), gradients=True)


@pytest.mark.parametrize("case", [ONE_KEY, FEW_KEYS], ids=["one key", "few keys"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_with_few_keys(checker: Checker, case: Case, dtype: str) -> None:
    ratios = []
    for seed in range(24):
        for c in checker.gradients(replace(case, dtype=dtype, seed=seed)):
            assert c.passed, (seed, c)
            if c.what == "grad.k" and c.error and c.plain_error:
                ratios.append(c.error / c.plain_error)
    assert len(ratios) > 12
    assert geometric_mean(ratios) < 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_order_changes_the_rounding_only(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 24, generator=generator, dtype=dtype) for n in (9, 33, 33))
    given = {"rate": torch.tensor([0.1, 0.3], dtype=dtype)}

    def gradients(order: int) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        found = attncompiler.oracle.attention(
            Recency(), *leaves, q_start=30, tensors=given, dtype=None, order=order
        )
        return [found.out, *torch.autograd.grad(found.out.square().sum(), leaves)]

    usual, other, third = gradients(0), gradients(1), gradients(2)
    unit = torch.finfo(dtype).eps
    for a, b, c in zip(usual, other, third, strict=True):
        assert not torch.equal(a, b)
        assert not torch.equal(b, c)
        assert (a - b).abs().max() <= 1000 * unit * a.abs().max()
        assert (a - c).abs().max() <= 1000 * unit * a.abs().max()


def test_a_result_is_judged_by_the_largest_error_of_several_orders() -> None:
    asked = []

    def compared(order: int) -> tuple[Comparison, ...]:
        asked.append(order)
        return (
            Comparison("out", error=5.0, plain_error=3.0 if order == 4 else 1.0, floor=0.5),
            Comparison("grad.q", error=1.0, plain_error=1.0 / (1 + order), floor=0.0),
        )

    out, grad = judged(compared)
    assert asked == [0, 1, 2, 3, 4]
    assert out.passed
    assert out.plain_error == 3.0
    assert grad.plain_error == 1.0


def test_a_wrong_result_stays_wrong() -> None:
    asked = []

    def compared(order: int) -> tuple[Comparison, ...]:
        asked.append(order)
        return (Comparison("out", error=3.0, plain_error=1.0, floor=0.5),)

    assert not judged(compared)[0].passed
    assert asked == list(range(8))


@pytest.mark.parametrize("error", [300.0, math.inf, math.nan])
def test_what_no_order_explains_is_wrong_at_once(error: float) -> None:
    asked = []

    def compared(order: int) -> tuple[Comparison, ...]:
        asked.append(order)
        return (Comparison("out", error=error, plain_error=1.0, floor=0.5),)

    assert not judged(compared)[0].passed
    assert asked == [0]
