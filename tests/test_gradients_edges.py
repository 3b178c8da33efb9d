"""Gradients where formulas, rows and numbers are at their limits: rows without keys, ties, statistics in the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import attncompiler
import attncompiler.oracle
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.dsl import Tensor, Variant, exp, log, maximum, relu, sigmoid, square, tanh, where
from tests.gradients import describe

pytestmark = pytest.mark.usefixtures("quick_builds")

# Rows without keys alone, among others, in packed and in separate heads; no key at all.
CASES = [
    Case(B=2, H=6, G=2, M=3, N=11, D=8, Dv=6, dtype="float64", seed=1),
    Case(B=1, H=4, G=2, M=21, N=13, D=8, Dv=6, q_start=2, dtype="float64", seed=2),
    Case(B=1, H=2, G=1, M=70, N=40, D=8, Dv=6, layout="swapped", dtype="float64", seed=3),
    Case(B=1, H=2, G=2, M=5, N=0, D=8, Dv=6, dtype="float64", seed=4),
]


class Lagging(Variant):
    """The first rows have no key; the output reads statistics that are made of tensors."""

    sink = Tensor("h")
    tau = Tensor("h", low=0.5, high=1.5)
    feature = Tensor("h", "d")

    def mask(self, at: Any) -> Any:
        return at.k + 4 <= at.q


class SinkShare(Lagging):
    """In a row without keys the sink's share is 1 and the logarithm is the sink."""

    def normalize(self, s: Any, row: Any) -> Any:
        sink = self.sink[row.h]
        shift = maximum(row.max(s), sink)
        e = exp(s - shift)
        total = row.sum(e) + exp(sink - shift)
        row.keep("shift", shift)
        row.keep("lse", shift + log(total))
        row.keep("share", exp(sink - shift) / total)
        return e / total

    def output(self, o: Any, at: Any) -> Any:
        own = self.feature[at.h, at.d] + self.sink[at.h]
        return o * at.stats.share + at.stats.lse * own * at.sum(square(o) - at.stats.shift)


class Tempered(Lagging):
    """In a row without keys the statistic is -inf, and its slope infinite."""

    def normalize(self, s: Any, row: Any) -> Any:
        m = row.max(s)
        e = exp(s - m)
        total = row.sum(e)
        row.keep("lse", (m + log(total)) * self.tau[row.h])
        return e / total

    def output(self, o: Any, at: Any) -> Any:
        return (o + self.feature[at.h, at.d]) * sigmoid(at.stats.lse - self.sink[at.h])


class Guarded(Tempered):
    """Keeps -inf out of the output, where torch itself would multiply it by 0 in the gradient of o."""

    def output(self, o: Any, at: Any) -> Any:
        return where(at.stats.lse > -1e30, o * at.stats.lse, self.feature[at.h, at.d])


class Extrema(Lagging):
    """Maxima and minima that the weight depends on, of formulas a compiler may contract differently in each loop."""

    bias = Tensor("h", "k")

    def score(self, s: Any, at: Any) -> Any:
        return tanh(s * 0.7 + self.bias[at.h, at.k]) * 1.3 + self.tau[at.h] * s

    def normalize(self, s: Any, row: Any) -> Any:
        x = s * self.tau[row.h] + self.bias[row.h, row.k]
        high, low = row.max(x), row.min(x)
        row.keep("range", high - low)
        z = (x - low) / (high - low + 0.25)
        return z * row.max(z * z - self.sink[row.h] * z) + relu(z - 0.5)


@pytest.mark.parametrize("variant", [SinkShare, Tempered, Guarded, Extrema])
def test_rows_without_keys(variant: type[Variant]) -> None:
    checker = Checker(variant())
    wrong = {str(case): describe(checker.gradients(case)) for case in CASES}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_extremum_is_found_again(dtype: str) -> None:
    checker = Checker(Extrema())
    for case in CASES[1:3]:
        assert not describe(checker.gradients(replace(case, dtype=dtype)))


def _gradients(call: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> list[torch.Tensor]:
    mine = [x.detach().requires_grad_() for x in leaves]
    out = call(*mine)
    weights = torch.arange(out.numel()).reshape(out.shape).cos().to(out.dtype)
    return list(torch.autograd.grad(out, mine, weights))


class Spread(Variant):
    """Depends on a maximum, a minimum and the magnitude of scores."""

    def mask(self, at: Any) -> Any:
        return at.k + 2 <= at.q

    def normalize(self, s: Any, row: Any) -> Any:
        return s * row.max(s) + row.min(abs(s))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_share(dtype: torch.dtype) -> None:
    """Whole numbers as scores and keys that come twice: many keys of a row attain its extrema."""
    generator = torch.Generator().manual_seed(7)
    q = torch.randint(-1, 2, (1, 4, 21, 8), generator=generator).to(dtype)
    k = torch.randint(-1, 2, (1, 2, 20, 8), generator=generator).to(dtype).repeat(1, 1, 2, 1)
    v = torch.randint(-3, 4, (1, 2, 40, 6), generator=generator).to(dtype)
    op = attncompiler.compile(Spread)
    found = _gradients(lambda *x: op(*x, scale=1.0), q, k, v)
    exact = _gradients(
        lambda *x: attncompiler.oracle.attention(Spread(), *x, scale=1.0).out,
        *(x.double() for x in (q, k, v)),
    )
    for mine, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("statistic", ["shift", "lse", "share"])
def test_one_statistic_alone(statistic: str) -> None:
    """The others and the output have no gradient at all."""
    checker = Checker(SinkShare())
    q, k, v, tensors = checker.inputs(CASES[1])
    names = list(tensors)

    def call(oracle: bool) -> Callable[..., torch.Tensor]:
        def run(q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
            given = dict(zip(names, rest, strict=True))
            if oracle:
                result = attncompiler.oracle.attention(
                    SinkShare(), q, k, v, q_start=2, tensors=given
                )
                return result.stats[statistic]
            _, stats = checker.operator(q, k, v, q_start=2, return_stats=True, **given)
            row: torch.Tensor = stats[statistic]
            return row

        return run

    leaves = [x.double() for x in (q, k, tensors["sink"])]

    def only(run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        rest = {n: t.double() for n, t in tensors.items()}
        return lambda q, k, sink: run(q, k, v.double(), *({**rest, "sink": sink}.values()))

    found, exact = _gradients(only(call(False)), *leaves), _gradients(only(call(True)), *leaves)
    for mine, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)


def test_a_row_without_keys_may_hold_anything() -> None:
    """What is not finite in it reaches no other row's gradient."""
    generator = torch.Generator().manual_seed(8)
    op = attncompiler.compile(Spread)
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (torch.randn(1, 2, n, 8, generator=generator).to(dtype) for n in (21, 13, 13))
        wild = q.clone()
        wild[:, :, 0], wild[:, :, 1] = torch.nan, torch.inf
        plain, found = (_gradients(op, x, k, v) for x in (q, wild))
        assert all(torch.equal(x, y) for x, y in zip(plain[1:], found[1:], strict=True))
        assert torch.equal(plain[0], found[0])
