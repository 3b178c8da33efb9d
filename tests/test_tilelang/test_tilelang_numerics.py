"""TileLang's kernels, as C on the CPU: outputs, statistics and gradients are those of the formula.

What runs here is what a GPU runs, but for layouts and pipelines: indices, masks, tails, tiles, sums of gradients.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Tensor, Variant, causal
from attncompiler.runtime.operator import Operator
from attncompiler.variant_file import load_variant
from tests.example_table import files
from tests.gradients import describe
from tests.triton_calls import failures, use_tiles

# Two tiles of queries, three of keys, whole ones and pieces; groups of heads; value and head dimensions that differ.
CALL = Case(B=1, H=4, G=2, M=70, N=131, D=24, Dv=20, q_start=61, layout="swapped", seed=1)
# Heads that are wider than a warp's registers; value and head dimensions of another width each.
WIDE = Case(B=1, H=2, G=1, M=40, N=75, D=136, Dv=129, q_start=35, layout="swapped", seed=2)
# Each is another path: plain; slopes and a closed form; no row maximum; planned lists; several spans; two passes; a
# gradient that a mask applied after the weights keeps; sums of gradients over keys, rows, pairs and features.
FAST = (
    "alibi",
    "sigmoid",
    "packed_documents",
    "longformer",
    "graph_isomorphic",
    "t5_bias",
)


def checked(path: Path, *, gradients: bool) -> str:
    """What is wrong with an example; empty when nothing is."""
    mine = Checker(load_variant(path), backend="tilelang", gradients=gradients)
    # A layout wants all tokens of its grid.
    block = (256, 256) if mine.variant.layout is not None else (64, 64)
    found = ""
    # Heads one by one; three of four in turns, then the one that is left.
    for raster in (1, 3):
        use_tiles(mine.operator, *block, raster=raster)
        outcome = mine.run(CALL)
        found = found or ("" if outcome.passed else outcome.describe())
        if not found and gradients:
            found = describe(mine.gradients(CALL))
    return found


@pytest.mark.parametrize("name", FAST)
def test_an_example_and_its_gradients(name: str) -> None:
    (path,) = (p for p in files() if p.stem == name)
    assert not checked(path, gradients=True)


@pytest.mark.parametrize(
    "name",
    [
        "kv_bias",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("alibi", "cog", "packed_documents")),
    ],
)
def test_warps_that_part_the_features_of_wide_heads(name: str) -> None:
    (path,) = (p for p in files() if p.stem == name)
    mine = Checker(load_variant(path), backend="tilelang", gradients=True)
    use_tiles(mine.operator, 16, 32)  # of four warps one would have 16 rows
    assert not failures(mine, [WIDE])


@pytest.mark.slow
@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_every_example_and_its_gradients(path: Path) -> None:
    assert not checked(path, gradients=True)


class _Plain(Variant):
    pass


class _Biased(Variant):
    bias = Tensor("h", "q", "k")

    def score(self, s: Any, at: Any) -> Any:
        return s + self.bias[at.h, at.q, at.k]

    def mask(self, at: Any) -> Any:
        return causal(at)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 1, 64), (64, 128, 16), (129, 66, 72)])
def test_lengths_around_tiles(sizes: tuple[int, int, int]) -> None:
    m, n, d = sizes
    op, dense = compile_variant(_Plain, backend="tilelang"), compile_variant(_Plain, "dense")
    torch.manual_seed(m)
    q, k, v = (torch.randn(1, 2, length, d) for length in (m, n, n))
    torch.testing.assert_close(op(q, k, v), dense(q, k, v).float(), rtol=1e-5, atol=2e-6)


def test_nothing_to_do() -> None:
    op = compile_variant(_Plain, backend="tilelang")
    for m, n in ((0, 5), (5, 0)):
        q, k, v = (torch.randn(2, 1, length, 16) for length in (m, n, n))
        assert op(q, k, v).shape == (2, 1, m, 16)
        assert not op(q, k, v).any()


def test_a_negative_scale() -> None:
    class Negative(Variant):
        scale = -0.5

    op, dense = compile_variant(Negative, backend="tilelang"), compile_variant(Negative, "dense")
    q, k, v = (torch.randn(1, 1, 70, 16, requires_grad=True) for _ in range(3))
    results = []
    for run in (op, dense):
        out = run(q, k, v)
        results.append((out, *torch.autograd.grad(out.sin().sum(), (q, k, v))))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted.to(found.dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("deterministic", [True, False])
def test_gradients_in_any_order(deterministic: bool) -> None:
    """Also where one kernel adds up dq, and where a bias of pairs gets its gradient without sums."""
    op = compile_variant(_Biased, backend="tilelang", deterministic=deterministic)
    dense = compile_variant(_Biased, "dense")
    results = []
    for run in (op, dense):
        torch.manual_seed(1)
        q, k, v = (torch.randn(2, 2, 70, 16, requires_grad=True) for _ in range(3))
        bias = torch.randn(2, 70, 70, requires_grad=True)
        out = run(q, k, v, bias=bias)
        grads = torch.autograd.grad(out.square().sum(), (q, k, v, bias))
        results.append((out, *grads))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted.to(found.dtype), rtol=1e-4, atol=1e-5)


def test_equal_calls_give_equal_bits() -> None:
    op = compile_variant(_Biased, backend="tilelang")
    assert isinstance(op, Operator)
    q, k, v = (torch.randn(1, 2, 70, 16, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 70, 70, requires_grad=True)
    found = [
        torch.autograd.grad(op(q, k, v, bias=bias).square().sum(), (q, k, v, bias))
        for _ in range(2)
    ]
    for x, y in zip(*found, strict=True):
        assert torch.equal(x, y)


class _NoField(Variant):
    """Formulas that would be simpler if floats were the numbers of a field."""

    def score(self, s: Any, at: Any) -> Any:
        unknown = s / (at.q * 0.0)
        differs = torch.where(unknown != unknown, 0.25, -0.25)
        same = torch.where(unknown == unknown, 0.5, -0.5)
        more = torch.where(~(unknown < s), 0.125, -0.125)
        gone = torch.where(unknown * 0.0 < 1.0, 1.0, -1.0)
        less = torch.where(torch.minimum(unknown, s) <= s, 0.75, -0.75)
        return s + differs + same + more + gone + less


def test_floats_are_not_the_numbers_of_a_field() -> None:
    """TileLang's simplifier takes them for that: (x + y) - y is x there, and a NaN equal to itself."""
    op, dense = compile_variant(_NoField, backend="tilelang"), compile_variant(_NoField, "dense")
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 20, 16) for _ in range(3))
    q[:, :, 3] = k[:, :, 3] = 0.0
    torch.testing.assert_close(op(q, k, v), dense(q, k, v).float(), rtol=1e-5, atol=1e-5)
