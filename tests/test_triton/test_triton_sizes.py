"""Triton kernels on calls that break kernels: lengths, head dimensions, groups, strides, starts, scales and tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import attncompiler
from attncompiler.cases import Case
from attncompiler.dsl import Tensor as Input
from attncompiler.dsl import Variant, bit_length, causal, exp, maximum, relu, sigmoid, sign
from tests.gradients import describe
from tests.test_gradients_edges import CASES as EDGES
from tests.test_gradients_edges import Extrema, Guarded, SinkShare, Tempered
from tests.triton_calls import DTYPES, checker, failures, use_tiles


class Plain(Variant):
    """No mask: every tile is full."""


class Window(Variant):
    """Partial and empty tiles; rows without keys where queries run past the keys."""

    window: int = 20

    def mask(self, at: Any) -> Any:
        return causal(at) & (at.q - at.k < self.window)


class Numbers(Variant):
    """Integers of every width, bools as numbers, negative // and %, shifts by a varying amount."""

    factor: int = 3

    def score(self, s: Any, at: Any) -> Any:
        far = at.q - at.k
        s = s + (far // 5 + far % 5 + far // -3 + far % -3) * 0.1 + sign(far) + (at.q == at.k) * 2.0
        s = s + ((far > 0) + (at.k % 3 == 0) * 2) * 0.5 - bit_length(maximum(far, -far)) * 0.5
        return s + maximum(far, 0) * 0.01 + ((1 << (at.k % 40)) & 0x5555555555 != 0) * 1.0

    def mask(self, at: Any) -> Any:
        return (at.q * self.factor + at.k * self.factor * self.factor) % 7 != 0


class Documents(Variant):
    """Equal and ordered ids beyond 32 bits."""

    ids = Input("k", dtype="int")
    first = Input("q", dtype="int")

    def mask(self, at: Any) -> Any:
        return self.ids[at.k] <= self.first[at.q]


LENGTHS = [(1, 257, 256), (5, 63, 0), (63, 5, 3), (127, 129, 2), (129, 1, 0), (257, 127, 0)]
EMPTY = [
    Case(B=0, H=2, G=1, M=5, N=7, D=16, Dv=16),
    Case(B=1, H=2, G=1, M=0, N=7, D=16, Dv=16),
    Case(B=2, H=2, G=1, M=5, N=0, D=16, Dv=24),
]
LAYOUTS = ("plain", "swapped", "padded", "broadcast")


@pytest.mark.parametrize("number", range(len(LENGTHS)))
def test_lengths(number: int) -> None:
    mine = checker(Window)
    use_tiles(mine.operator, *((64, 64), (128, 64), (32, 64))[number % 3])
    m, n, start = LENGTHS[number]
    case = Case(B=1, H=1, G=1, M=m, N=n, D=16, Dv=24, q_start=start, layout=LAYOUTS[number % 4])
    assert not failures(mine, [replace(case, dtype=DTYPES[number % 3], seed=number)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [Plain, Window, Numbers, Documents])
def test_every_length(variant: type[Variant], dtype: str) -> None:
    mine = checker(variant)
    cases = [
        Case(B=1 + i % 2, H=(1, 3, 8)[i % 3], G=1, M=m, N=n, D=31, Dv=17, q_start=start,
             layout=LAYOUTS[(i + len(dtype)) % 4], dtype=dtype, seed=i)
        for i, (m, n, start) in enumerate(LENGTHS)
    ]  # fmt: skip
    assert not failures(mine, cases)


@pytest.mark.parametrize("variant", [Numbers, Documents])
def test_formulas_of_integers(variant: type[Variant]) -> None:
    mine = checker(variant)
    use_tiles(mine.operator, 32, 64)
    assert not failures(mine, [Case(B=1, H=2, G=1, M=37, N=70, D=16, Dv=16, q_start=31, seed=1)])


@pytest.mark.parametrize("variant", [Plain, Window])
def test_nothing_at_all(variant: type[Variant]) -> None:
    assert not failures(checker(variant), EMPTY)


@pytest.mark.parametrize("head_dim", [1, 16, 31, 72, 96, 192, 256, 512])
def test_head_dimensions(head_dim: int) -> None:
    mine = checker(Window)
    use_tiles(mine.operator, 16, 32)
    turn = head_dim % 3
    value_dim = {1: 512, 31: 72, 512: 1}.get(head_dim, head_dim + 8 * turn)
    case = Case(B=1, H=1, G=1, M=19, N=35, D=head_dim, Dv=value_dim, q_start=16)
    assert not failures(mine, [replace(case, dtype=DTYPES[turn])])


@pytest.mark.parametrize(("heads", "groups"), [(3, 1), (8, 1), (6, 2)])
def test_groups(heads: int, groups: int) -> None:
    mine = checker(Window)
    use_tiles(mine.operator, 32, 32)
    case = Case(B=1, H=heads, G=groups, M=9, N=40, D=16, Dv=8, q_start=31, layout="swapped")
    assert not failures(mine, [case])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout: Any) -> None:
    mine = checker(Window)
    use_tiles(mine.operator, 32, 64)
    assert not failures(mine, [Case(B=2, H=2, G=2, M=33, N=40, D=16, Dv=8, layout=layout)])


@pytest.mark.parametrize("tiles", [(16, 16), (64, 32), (32, 64), (128, 64), (16, 128)])
def test_tiles(tiles: tuple[int, int]) -> None:
    mine = checker(Window)
    use_tiles(mine.operator, *tiles)
    m, n = tiles[0] * 2 + 1, tiles[1] * 2 - 1
    assert not failures(mine, [Case(B=1, H=1, G=1, M=m, N=n, D=16, Dv=16, q_start=max(n - m, 0))])


@pytest.mark.parametrize("variant", [SinkShare, Tempered, Guarded, Extrema])
def test_rows_without_keys(variant: type[Variant]) -> None:
    mine = checker(variant)
    use_tiles(mine.operator, 32, 16)
    cases = [replace(case, B=1, H=case.G, dtype="float32") for case in EDGES]
    wrong = {str(case): describe(mine.gradients(case)) for case in (cases[1], cases[3])}
    assert not any(wrong.values()), wrong


class Powers(Variant):
    """Nothing is divided by a sum, and the maximum matters."""

    def mask(self, at: Any) -> Any:
        return at.k <= at.q + 3

    def normalize(self, s: Any, row: Any) -> Any:
        return relu(s) * row.max(s) + exp(-s * s)


@pytest.mark.parametrize("variant", [Window, Powers])
@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
def test_scales(variant: type[Variant], scale: float) -> None:
    """The largest score has the smallest product where the scale is negative."""
    results = []
    for backend in ("triton", "dense"):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for n in (19, 35, 35))
        op = attncompiler.compile(variant, backend=backend)
        if backend == "triton":
            use_tiles(op, 16, 32)  # type: ignore[arg-type]
        out = op(q, k, v, q_start=16, scale=scale)
        wave = torch.arange(out.numel()).cos().reshape(out.shape)
        results.append((out, *torch.autograd.grad((out * wave).sum(), (q, k, v))))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=2e-5)


class Reads(Variant):
    """Captured tensors of three ranks, read and differentiated."""

    bias = Input("h", "q", "k")
    gate = Input("b", "q", "d")
    sink = Input("h")
    ids = Input("k", dtype="int")

    def score(self, s: Any, at: Any) -> Any:
        return s + self.bias[at.h, at.q, at.k] + self.sink[at.h]

    def mask(self, at: Any) -> Any:
        return self.ids[at.k] > 0

    def output(self, o: Any, at: Any) -> Any:
        return o * sigmoid(self.gate[at.b, at.q, at.d])


def test_strides_of_captured_tensors() -> None:
    """Transposed, with steps and shared: the same numbers in other places give the same bits."""
    op = attncompiler.compile(Reads, backend="triton")
    use_tiles(op, 16, 32)
    q, k, v = (torch.randn(2, 2, n, 16) for n in (19, 35, 35))
    tensors = {
        "bias": torch.randn(1, 1, 35).expand(2, 19, 35),
        "gate": torch.randn(16, 19, 2).permute(2, 1, 0),
        "sink": torch.randn(6)[::3],
        "ids": (torch.arange(105) % 4)[::3],
    }

    def run(given: dict[str, Tensor]) -> list[Tensor]:
        mine = {n: x.detach().requires_grad_(x.is_floating_point()) for n, x in given.items()}
        out = op(q, k, v, **mine)
        floats = [x for x in mine.values() if x.requires_grad]
        return [out, *torch.autograd.grad(out.square().sum(), floats)]

    plain = {n: x.contiguous() for n, x in tensors.items()}
    for found, wanted in zip(run(tensors), run(plain), strict=True):
        assert torch.equal(found, wanted)
