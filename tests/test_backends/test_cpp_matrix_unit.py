"""Products by tile registers: numbers that pieces of bfloat16 do not carry, and rows that must not feel each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import attncompiler
from attncompiler import oracle
from attncompiler.dsl import Variant, exp
from attncompiler.runtime import toolchain
from tests.cpp_harness import has_tiles

pytestmark = pytest.mark.skipif(not has_tiles(), reason="this machine has no tile registers")


class Plain(Variant):
    """Softmax."""


class Weights(Variant):
    """Weights of any size: exponentials that nothing divides."""

    shift: float = 0.0

    def normalize(self, s, row):  # type: ignore[no-untyped-def]
        return exp(s - self.shift)


class Past(Variant):
    """Softmax to the past."""

    def mask(self, at):  # type: ignore[no-untyped-def]
        return at.k <= at.q


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(dim: int = 64, rows: int = 130) -> tuple[Tensor, Tensor, Tensor]:
    return draw(1, 2, rows, dim), draw(1, 2, 150, dim, seed=1), draw(1, 2, 150, dim, seed=2)


def dense(q: Tensor, k: Tensor, v: Tensor, weights: Callable[[Tensor], Tensor]) -> Tensor:
    return weights(q @ k.mT / math.sqrt(q.shape[-1])) @ v


def assert_close(found: Tensor, plain: Tensor, wanted: Tensor) -> None:
    """At most twice the error of plain PyTorch, each relative to its row: rows differ by many powers of ten."""
    size = wanted.abs().amax(-1, keepdim=True)
    errors = [((x.double() - wanted) / size).abs().max() for x in (found, plain)]
    assert errors[0] <= 2 * errors[1] + torch.finfo(torch.float32).eps


def assert_gradients(
    found: Sequence[Tensor], plain: Sequence[Tensor], wanted: Sequence[Tensor]
) -> None:
    for x, y, z in zip(found, plain, wanted, strict=True):
        assert x.isfinite().all()
        limit = 2 * (y.double() - z).abs().max() + torch.finfo(x.dtype).eps * z.abs().max()
        assert (x.double() - z).abs().max() <= limit


def softmax(s: Tensor) -> Tensor:
    return s.softmax(-1)


SIZES = [1e-38, 1e-30, 1e-13, 1e13, 1e30]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_single_rows_of_any_size(which: str, size: float) -> None:
    q, k, v = inputs()
    changed = {"q": q, "k": k, "v": v}[which]
    changed[:, :, 17] *= size
    changed[:, :, 70:73] *= size
    found = attncompiler.compile(Plain)(q, k, v)
    wanted = oracle.attention(Plain(), q, k, v, tensors={}).out
    assert found.isfinite().all()
    assert_close(found, dense(q, k, v, softmax), wanted)


@pytest.mark.parametrize("shift", [-80.0, -40.0, 0.0, 40.0, 80.0])
def test_weights_of_any_size(shift: float) -> None:
    q, k, v = inputs()
    found = attncompiler.compile(Weights)(q, k, v, shift=shift)
    wanted = oracle.attention(Weights(shift=shift), q, k, v, tensors={}).out
    assert_close(found, dense(q, k, v, lambda s: torch.exp(s - shift)), wanted)


def test_infinite_weights_reach_their_rows_only() -> None:
    q, k, v = inputs()
    q[:, :, 3] = 40 * k[:, :, 50]  # a weight beyond every float
    v[:, :, 50, 5] = 0
    clean = attncompiler.compile(Weights)(*inputs()[:1], k, v)
    found = attncompiler.compile(Weights)(q, k, v)
    plain = dense(q, k, v, torch.exp)
    assert plain[:, :, 3].isinf().any()
    assert torch.equal(found.isinf(), plain.isinf())
    assert torch.equal(found.isnan(), plain.isnan())
    others = torch.arange(q.shape[2]) != 3
    assert torch.equal(found[:, :, others], clean[:, :, others])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, 1e-40])
def test_a_query_of_any_kind_stays_in_its_row(bad: float) -> None:
    q, k, v = inputs()
    clean = attncompiler.compile(Past)(q, k, v)
    q[:, :, 7, 2] = bad
    found = attncompiler.compile(Past)(q, k, v)
    others = torch.arange(q.shape[2]) != 7
    assert torch.equal(found[:, :, others], clean[:, :, others])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bad_values_reach_their_feature_only(bad: float, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in inputs())
    v[:, :, 40, 9] = bad
    found = attncompiler.compile(Plain)(q, k, v)
    wanted = oracle.attention(Plain(), q, k, v, tensors={}).out
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.isinf(), wanted.isinf())
    assert found[..., :9].isfinite().all()


@pytest.mark.parametrize("which", ["q", "k", "v", "go"])
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-13, 1e13])
def test_gradients_where_rows_have_any_size(which: str, size: float) -> None:
    q, k, v = inputs(rows=100)
    go = draw(*q.shape, seed=3)
    {"q": q, "k": k, "v": v, "go": go}[which][:, :, 17] *= size
    leaves = [x.requires_grad_() for x in (q, k, v)]
    found = torch.autograd.grad(attncompiler.compile(Plain)(*leaves), leaves, go)
    plain = torch.autograd.grad(dense(*leaves, softmax), leaves, go)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    wanted = torch.autograd.grad(dense(*exact, softmax), exact, go.double())
    assert_gradients(found, plain, wanted)


@pytest.mark.parametrize("scale", [1e-12, 1e-16, 1e-17, 1e-20, 1e-30])
def test_gradients_of_tiny_losses(scale: float) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(rows=100))
    go = draw(*q.shape, seed=3) * scale
    found = torch.autograd.grad(attncompiler.compile(Plain)(q, k, v), (q, k, v), go)
    plain = torch.autograd.grad(dense(q, k, v, softmax), (q, k, v), go)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad(dense(*exact, softmax), exact, go.double())
    assert_gradients(found, plain, wanted)


def test_same_operator_without_tile_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs()
    found = attncompiler.compile(Past)(q, k, v)
    monkeypatch.setenv("ATTNCOMPILER_CXXFLAGS", "-mno-amx-tile")
    other = attncompiler.compile(Past)(q, k, v)
    assert not torch.equal(found, other)  # another order of additions
    torch.testing.assert_close(found, other, rtol=1e-5, atol=2e-6)


def test_tiles_that_are_not_lent_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "tiles_are_lent", lambda: False)
    toolchain._toolchain.cache_clear()
    try:
        assert "-mno-amx-tile" in toolchain.find_toolchain().flags
    finally:
        monkeypatch.undo()
        toolchain._toolchain.cache_clear()
    assert "-mno-amx-tile" not in toolchain.find_toolchain().flags
