"""Generated kernels that walk ranges of keys: every kind of range, against the oracle, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attncompiler.backends.cpp import render
from attncompiler.backends.cpp_context import Specialization
from attncompiler.compiler import compile
from attncompiler.variant import Variant


class Window(Variant):
    window: int = 70

    def mask(self, at: Any) -> Any:
        return (at.k <= at.q) & (at.q - at.k < self.window)


class SinkWindow(Variant):
    sink: int = 3
    window: int = 100

    def mask(self, at: Any) -> Any:
        return (at.k <= at.q) & ((at.k < self.sink) | (at.q - at.k < self.window))


class Prefix(Variant):
    prefix: int = 130

    def mask(self, at: Any) -> Any:
        return (at.k <= at.q) | (at.k < self.prefix)


class Strided(Variant):
    def mask(self, at: Any) -> Any:
        return (at.k <= at.q) & (at.k % 150 == 7)


class DilatedWindow(Variant):
    window: int = 300

    def mask(self, at: Any) -> Any:
        distance = at.q - at.k
        return (distance >= 0) & (distance < self.window) & (distance % 128 == 0)


class Chunks(Variant):
    def mask(self, at: Any) -> Any:
        return (at.k <= at.q) & (at.k // 100 == at.q // 100)


class Neighborhood(Variant):
    window: int = 9

    def mask(self, at: Any) -> Any:
        rows = abs(at.q // 20 - at.k // 20) <= 2
        return rows & (abs(at.q % 20 - at.k % 20) * 2 <= self.window)


class Powers(Variant):
    def mask(self, at: Any) -> Any:
        distance = at.q // 8 - at.k // 8
        return (distance > 0) & (distance & (distance - 1) == 0)


CASES = [
    *(Window(window=w) for w in (0, 1, 70, 2**41, 2**63 - 1, -(2**62), -(2**63))),
    *(SinkWindow(sink=s, window=w) for s, w in ((3, 100), (500, 5), (0, 2**62))),
    *(Prefix(prefix=p) for p in (130, 0, 2**50)),
    Strided(),
    *(DilatedWindow(window=w) for w in (300, 2**45)),
    Chunks(),
    Neighborhood(),
    Powers(),
]


@pytest.mark.parametrize("variant", CASES, ids=lambda v: f"{type(v).__name__}-{vars(v)}")
@pytest.mark.parametrize(("queries", "keys", "start"), [(330, 410, 0), (37, 700, 560)])
def test_a_kernel_that_walks_ranges_computes_the_formula(
    variant: Variant, queries: int, keys: int, start: int
) -> None:
    torch.manual_seed(queries)
    q = torch.randn(1, 4, queries, 8, dtype=torch.float64)
    k, v = (torch.randn(1, 2, keys, 8, dtype=torch.float64) for _ in range(2))
    results = []
    for backend in ("cpp", "dense"):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = compile(variant, backend=backend)(*inputs, q_start=start)
        (out * torch.arange(8)).sum().backward()
        results.append([out.detach(), *(x.grad for x in inputs)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("variant", "lines"),
    [
        (Window(), ["if ((a.p_window > 0)) add(", "return bisect("]),
        (Chunks(), ["add((floordiv_int(q_lo, 100) * 100), (q_hi + 1));"]),
        (Strided(), [", 150 > TILE);", "if (r.holes) bisect("]),
    ],
    ids=["window", "chunks", "strided"],
)
def test_the_source_counts_instead_of_searching(variant: Variant, lines: list[str]) -> None:
    kernel = compile(variant).compilation.kernel
    text = render(kernel, Specialization("float32", 64, 64), "title", "", "")
    for line in lines:
        assert line in text
