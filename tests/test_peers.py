"""Which PyTorch call can express a variant is decided by structure, and the calls compute the variant."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attncompiler.oracle
from attncompiler.comparison import Size, inputs_for
from attncompiler.dsl import Tensor, Variant, causal, exp, maximum, sigmoid, tanh, where
from attncompiler.frontend import trace
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.peers import Refusal, peer
from attncompiler.timing import Timing, interleaved
from attncompiler.torch_formulas import module


class Causal(Variant):
    def mask(self, at: Any) -> Any:
        return causal(at)


class WrittenOut(Variant):
    scale = 0.5

    def mask(self, at: Any) -> Any:
        return at.k <= at.q

    def normalize(self, s: Any, row: Any) -> Any:
        e = exp(s - row.max(s))
        return e / row.sum(e)


class Strict(Variant):
    def mask(self, at: Any) -> Any:
        return at.k < at.q


class Capped(Causal):
    cap: float = 20.0

    def score(self, s: Any, at: Any) -> Any:
        return self.cap * tanh(s / self.cap)


class Sigmoid(Variant):
    def normalize(self, s: Any, row: Any) -> Any:
        return sigmoid(s)


class Gated(Variant):
    def output(self, o: Any, at: Any) -> Any:
        return 2 * o


class Everything(Variant):
    """Tensors, integers, groups, numbers on either side."""

    slope = Tensor("h")
    table = Tensor("g", 7)
    bias = Tensor()
    window: int = 9

    def score(self, s: Any, at: Any) -> Any:
        near = maximum(at.q - at.k, 0) // 2 % 7
        return where(at.k % 3 == 0, s, -s) + self.slope[at.h] * self.table[at.g, near] + self.bias

    def mask(self, at: Any) -> Any:
        return (at.q - at.k < self.window) & ((at.k >= 2) | (at.q == 5))


SIZE = Size(length=24, head_dim=16, heads=4, kv_heads=2)


@pytest.mark.parametrize(
    "variant", [Variant(), Causal(), WrittenOut()], ids=lambda v: type(v).__name__
)
def test_sdpa_computes_what_it_accepts(variant: Variant) -> None:
    inputs = inputs_for(variant, SIZE)
    call = peer("sdpa", variant, inputs)
    assert not isinstance(call, Refusal)
    exact = attncompiler.oracle.attention(variant, inputs.q, inputs.k, inputs.v).out
    torch.testing.assert_close(call().double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "reason"),
    [(Strict(), "mask"), (Capped(), "score"), (Sigmoid(), "softmax"), (Gated(), "output")],
    ids=lambda x: type(x).__name__,
)
def test_sdpa_refuses_what_it_cannot_express(variant: Variant, reason: str) -> None:
    found = peer("sdpa", variant, inputs_for(variant, SIZE))
    assert isinstance(found, Refusal)
    assert reason in found.reason


@pytest.mark.parametrize("variant", [Sigmoid(), Gated()], ids=lambda v: type(v).__name__)
def test_flex_refuses_what_it_cannot_express(variant: Variant) -> None:
    assert isinstance(peer("flex", variant, inputs_for(variant, SIZE)), Refusal)


def test_flex_bodies_compute_the_formulas() -> None:
    variant = Everything()
    inputs = inputs_for(variant, SIZE)
    traced = trace(variant)
    program = canonicalize(traced.program)
    score_mod = module(program.score, traced, inputs, ("score", "b", "h", "q", "k"))
    mask_mod = module(program.mask, traced, inputs, ("b", "h", "q", "k"))
    b, h, m, n = torch.meshgrid(*(torch.arange(x) for x in (1, 4, 24, 24)), indexing="ij")
    s = 16**-0.5 * inputs.q @ inputs.k.repeat_interleave(2, 1).transpose(-1, -2)
    scores = score_mod(s, b, h, m, n).masked_fill(~mask_mod(b, h, m, n), -torch.inf)
    out = scores.softmax(-1).nan_to_num(0.0) @ inputs.v.repeat_interleave(2, 1)
    exact = attncompiler.oracle.attention(
        variant, inputs.q, inputs.k, inputs.v, tensors=dict(inputs.tensors)
    ).out
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "variant", [Causal(), Capped(), Everything()], ids=lambda v: type(v).__name__
)
def test_flex_computes_what_it_accepts(variant: Variant) -> None:
    inputs = inputs_for(variant, Size(length=256, head_dim=16, heads=4, kv_heads=2))
    call = peer("flex", variant, inputs)
    assert not isinstance(call, Refusal), call
    exact = attncompiler.oracle.attention(
        variant, inputs.q, inputs.k, inputs.v, tensors=dict(inputs.tensors)
    ).out
    rows = exact.abs().sum(-1) > 0  # flex is undefined on rows without keys
    with torch.no_grad():
        torch.testing.assert_close(call().double()[rows], exact[rows], rtol=1e-4, atol=1e-4)


class Normed(Sigmoid):
    """An epilogue with reductions over the features, weights from a count and a sum without a mask."""

    gain = Tensor("h", "d")

    def normalize(self, s: Any, row: Any) -> Any:
        return sigmoid(s - row.mean(s)) / row.count()

    def output(self, o: Any, at: Any) -> Any:
        return o * (at.mean(o * o) + 1e-3) ** -0.5 * self.gain[at.h, at.d]


class Prepared(Causal):
    """Keys and values turned by ordinary torch first."""

    def prepare(self, q: Any, k: Any, v: Any) -> Any:
        return torch.cat([q, q], -1), torch.cat([k, -0.5 * k], -1), v


@pytest.mark.parametrize(
    "variant",
    [Causal(), Strict(), Capped(), Sigmoid(), Gated(), Everything(), Normed(), Prepared()],
    ids=lambda v: type(v).__name__,
)
def test_dense_computes_the_variant(variant: Variant) -> None:
    inputs = inputs_for(variant, SIZE)
    call = peer("dense", variant, inputs)
    assert not isinstance(call, Refusal)
    tensors = dict(inputs.tensors)
    exact = attncompiler.oracle.attention(
        variant, inputs.q, inputs.k, inputs.v, tensors=tensors
    ).out
    found = call().double()
    has_keys = ~found.isnan()  # a row without keys divides by zero in the plain formula
    assert has_keys.float().mean() > 0.9
    torch.testing.assert_close(found[has_keys], exact[has_keys], rtol=1e-4, atol=1e-5)


def test_dense_is_the_formula_in_the_inputs_type() -> None:
    variant = Capped()
    inputs = inputs_for(variant, Size(length=24, head_dim=16, dtype="bfloat16", heads=2))
    call = peer("dense", variant, inputs)
    assert not isinstance(call, Refusal)
    assert call().dtype == torch.bfloat16


def test_runs_are_interleaved_and_counted_alike() -> None:
    order: list[str] = []
    timings = interleaved({name: lambda name=name: order.append(name) for name in "abc"}, rounds=4)  # type: ignore[misc]
    assert order[:3] == ["a", "b", "c"], "the warm-up"
    assert ["".join(order[i : i + 3]) for i in (3, 6, 9, 12)] == ["abc", "bca", "cab", "abc"]
    assert {len(t.seconds) for t in timings.values()} == {4}


def test_median_and_spread() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median == 3.0
    assert Timing((1.0,)).spread == 0.0
    assert Timing((2.0, 2.0, 2.0)).spread == 0.0
