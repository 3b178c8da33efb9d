"""Gradients of tensors that many programs add to: the same bits in every order, exact sums, and what is not finite."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

import attncompiler
from attncompiler.cases import Case
from attncompiler.dsl import Tensor as Input
from attncompiler.dsl import Variant, clamp, softmax
from tests.gradients import describe
from tests.triton_calls import checker, use_tiles

Place = tuple[int, int, int]


@contextmanager
def ordered(order: Callable[[list[Place]], list[Place]]) -> Iterator[None]:
    """Programs of a grid run in another order."""
    builder = interpreter.interpreter_builder
    original = builder.set_grid_idx

    def place(*at: int) -> None:
        usual = list(product(*map(range, builder.grid_dim)))
        original(*order(list(usual))[usual.index(at)])  # type: ignore[arg-type]

    builder.set_grid_idx = place
    try:
        yield
    finally:
        builder.set_grid_idx = original


def shuffled(places: list[Place]) -> list[Place]:
    random.Random(3).shuffle(places)
    return places


class Shared(Variant):
    """A number, a table of distances, a slope of heads, a bias of keys, a pair bias and a feature."""

    gain = Input(low=0.5, high=1.5)
    table = Input("h", 7)
    slope = Input("h", low=0.1, high=0.6)
    bias = Input("k")
    pair = Input("q", "k")
    feature = Input("d")

    def score(self, s: Any, at: Any) -> Any:
        s = s * self.gain + self.table[at.h, clamp(at.q - at.k, -3, 3) + 3] + self.bias[at.k]
        return s - self.slope[at.h] * abs(at.q - at.k) + self.pair[at.q, at.k]

    def mask(self, at: Any) -> Any:
        return at.k <= at.q + 20

    def output(self, o: Any, at: Any) -> Any:
        return o * self.feature[at.d] * self.gain


def shared_gradients() -> dict[str, Tensor]:
    mine = checker(Shared)
    use_tiles(mine.operator, 16, 32)
    case = Case(B=1, H=2, G=1, M=20, N=40, D=16, Dv=16, seed=4)
    q, k, v, tensors = mine.inputs(case)
    leaves = {n: x.requires_grad_() for n, x in {"q": q, "k": k, "v": v, **tensors}.items()}
    out = mine.operator(**leaves)
    weights = torch.arange(out.numel()).cos().reshape(out.shape)
    found = torch.autograd.grad((out * weights).sum(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def test_every_order_gives_the_same_bits() -> None:
    usual = shared_gradients()
    with ordered(shuffled):
        found = shared_gradients()
    for name, x in usual.items():
        assert torch.equal(found[name], x), name


def test_shared_tensors_are_as_exact_as_plain_pytorch() -> None:
    mine = checker(Shared)
    use_tiles(mine.operator, 16, 32)
    wrong = describe(mine.gradients(Case(B=1, H=2, G=1, M=20, N=40, D=16, Dv=16, seed=4)))
    assert not wrong


class Whole(Variant):
    """Weights that are the bias itself: its gradient is a sum of values."""

    bias = Input("h")

    def normalize(self, s: Any, row: Any) -> Any:
        return self.bias[row.h] + s * 0.0


def test_programs_are_summed_exactly() -> None:
    """In floats, what is left of these numbers would hang on the order of additions."""
    op = attncompiler.compile(Whole, backend="triton")
    use_tiles(op, 16, 16)
    numbers = torch.tensor([2.0**30, 1.0, -(2.0**30), 3.0, 2.0**-20, 5.0]).reshape(6, 1, 1, 1)
    q, k, v = torch.zeros(6, 1, 1, 16), torch.zeros(6, 1, 1, 16), torch.ones(6, 1, 1, 1)
    bias = torch.ones(1, requires_grad=True)
    op(q, k, v, bias=bias).backward(numbers)
    assert bias.grad is not None
    assert bias.grad.item() == 9 + 2.0**-20


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_sums_of_any_size(size: float) -> None:
    op = attncompiler.compile(Whole, backend="triton")
    use_tiles(op, 16, 16)
    q, k, v = torch.zeros(1, 1, 20, 16), torch.zeros(1, 1, 20, 16), torch.randn(1, 1, 20, 16) * size
    bias = torch.ones(1, requires_grad=True)
    op(q, k, v, bias=bias).sum().backward()
    assert bias.grad is not None
    torch.testing.assert_close(
        bias.grad.double(), v.double().sum().reshape(1) * 20, rtol=1e-5, atol=0
    )


class Slopes(Variant):
    """A tensor over heads and a table of distances."""

    slope = Input("h")
    table = Input(5)

    def score(self, s: Any, at: Any) -> Any:
        return s + self.slope[at.h] * at.k + self.table[clamp(at.q - at.k, -2, 2) + 2]

    def mask(self, at: Any) -> Any:
        return at.k <= at.q

    def normalize(self, s: Any, row: Any) -> Any:
        return softmax(s, row)


@pytest.mark.parametrize("wild", [torch.inf, torch.nan])
def test_what_is_not_finite_reaches_its_own_elements(wild: float) -> None:
    op = attncompiler.compile(Slopes, backend="triton")
    use_tiles(op, 16, 16)
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 2, 20, 16) for _ in range(3))

    def run(last: float) -> tuple[Tensor, Tensor]:
        slope, table = torch.full((2,), 0.1).requires_grad_(), torch.zeros(5).requires_grad_()
        out = op(q, k, v, slope=slope, table=table)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        grad[0, 1, 1] = last  # a row with keys 0 and 1: distances 1 and 0
        return torch.autograd.grad(out, (slope, table), grad)  # type: ignore[return-value]

    (slope, table), (wild_slope, wild_table) = run(0.0), run(wild)
    assert not wild_slope[1].isfinite()
    assert not wild_table[2:4].isfinite().any()
    assert torch.equal(wild_slope[0], slope[0])
    torch.testing.assert_close(wild_table[[0, 1, 4]], table[[0, 1, 4]], rtol=1e-6, atol=1e-7)
