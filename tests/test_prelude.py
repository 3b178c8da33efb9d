"""The prelude against formulas written out by hand in torch, through the oracle and through the traced program."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attncompiler import dsl, oracle
from attncompiler.dsl import Tensor, Variant
from attncompiler.errors import ArgumentsError
from attncompiler.frontend import trace
from attncompiler.ir.expr import Index, Param, Size
from attncompiler.ir.interpreter import evaluate


def pairs(rows: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(rows).view(-1, 1), torch.arange(keys).view(1, -1)


def mask_of(
    function: Callable[[Any], Any], rows: int, keys: int, **attributes: Any
) -> torch.Tensor:
    """The allowed pairs of a mask, from the program; asserts that the oracle agrees."""
    cls = type("M", (Variant,), {"mask": lambda self, at: function(at), **attributes})
    variant = cls()
    t = trace(variant)
    q, k = pairs(rows, keys)
    leaves = {
        Index("q"): q,
        Index("k"): k,
        Size("N"): torch.tensor(keys),
        Size("M"): torch.tensor(rows),
    }
    leaves |= {Param(p.name, p.kind): torch.tensor(t.params[p.name]) for p in t.program.params}
    traced = evaluate(t.program.mask, leaves).expand(rows, keys)
    zeros = torch.zeros(1, 1, rows, 1), torch.zeros(1, 1, keys, 1)
    eye = torch.eye(keys).view(1, 1, keys, keys)
    out = oracle.attention(variant, *zeros, eye).out[0, 0]
    assert torch.equal(out > 0, traced)
    return traced


def test_masks_of_one_comparison() -> None:
    q, k = pairs(9, 12)
    expected = {
        "causal": (dsl.causal, k <= q),
        "window": (lambda at: dsl.sliding_window(at, 3), (q - k).abs() < 3),
        "prefix": (lambda at: dsl.prefix_lm(at, 4), (k <= q) | (k < 4)),
        "dilated": (
            lambda at: dsl.dilated(at, 3, 2),
            (q >= k) & ((q - k) % 2 == 0) & (q - k < 6),
        ),
        "sink": (lambda at: dsl.sink_window(at, 2, 3), (k <= q) & ((k < 2) | (q - k < 3))),
        "chunked": (lambda at: dsl.chunked(at, 4), q // 4 == k // 4),
        "blocks": (lambda at: dsl.block_causal(at, 4), k // 4 <= q // 4),
        "shifted": (
            lambda at: dsl.shifted_chunks(at, 4, 2),
            (k <= q) & ((q + 2) // 4 == (k + 2) // 4),
        ),
        "global": (
            lambda at: dsl.global_window(at, 2, 3),
            (k < 2) | (q < 2) | ((q - k).abs() < 3),
        ),
        "halo": (
            lambda at: dsl.halo(at, 4, 1),
            (k >= q // 4 * 4 - 1) & (k < q // 4 * 4 + 5),
        ),
    }
    for name, (function, allowed) in expected.items():
        assert torch.equal(mask_of(function, 9, 12), allowed), name


def test_power_of_two_reads_blocks_at_doubling_distance() -> None:
    got = mask_of(lambda at: dsl.power_of_two(at, 2, window=1, sink=1), 40, 40)
    for q in range(40):
        for k in range(40):
            d = q // 2 - k // 2
            near = d == 0 or k // 2 == 0 or (d > 0 and d & (d - 1) == 0)
            assert bool(got[q, k]) == (k <= q and near), (q, k)


def reference_axis(c: int, x: int, length: int, w: int, s: int, d: int, causal: bool) -> bool:
    """NATTEN's rule for one axis, as a loop over one pair."""
    if c % d != x % d:
        return False
    group = c % d
    length = math.ceil((length - group) / d)
    c, x = c // d, x // d
    left, right = w // 2, w // 2 + (w % 2 - 1)
    if causal:
        leader = min(c // s * s + s - 1, length - 1)
        return max(leader - left - right, 0) <= x <= c
    leader = min(c // s * s + s // 2, length - 1)
    start = max(min(leader - left, length - w), 0)
    return start <= x < start + w


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(3, 1), (4, 1), (4, 2), (4, 4), (5, 3)])
def test_neighborhood_of_one_axis(window: int, stride: int, causal: bool, dilation: int) -> None:
    length = 17
    got = mask_of(
        lambda at: dsl.neighborhood(at, window, None, stride, dilation, causal), length, length
    )
    for q in range(length):
        for k in range(length):
            wanted = reference_axis(q, k, length, window, stride, dilation, causal)
            assert bool(got[q, k]) == wanted, (q, k)


def test_neighborhood_of_three_axes() -> None:
    grid, window, stride, causal = (3, 4, 5), (2, 3, 3), (1, 2, 1), (True, False, False)
    total = math.prod(grid)
    got = mask_of(lambda at: dsl.neighborhood(at, window, grid, stride, 1, causal), total, total)
    for q in range(total):
        for k in range(total):
            a = (q // 20, q // 5 % 4, q % 5)
            b = (k // 20, k // 5 % 4, k % 5)
            wanted = all(
                reference_axis(a[i], b[i], grid[i], window[i], stride[i], 1, causal[i])
                for i in range(3)
            )
            assert bool(got[q, k]) == wanted, (q, k)


def test_neighborhood_refuses_the_wrong_number_of_axes() -> None:
    with pytest.raises(ArgumentsError, match="one an axis"):
        mask_of(lambda at: dsl.neighborhood(at, (3, 3, 3), (4, 4)), 16, 16)


def test_masks_over_tensors() -> None:
    class Documents(Variant):
        ids = Tensor("k", dtype="int")

        def mask(self, at):
            return dsl.document(at, self.ids)

    class Batched(Documents):
        ids = Tensor("b", "k", dtype="int")

    class Scales(Variant):
        levels = Tensor("k", dtype="int")

        def mask(self, at):
            return dsl.next_scale(at, self.levels) & dsl.tree(at, self.levels)

    ids = torch.tensor([0, 0, 1, 1, 2])
    zeros, eye = torch.zeros(2, 1, 5, 1), torch.eye(5).expand(2, 1, 5, 5)
    for variant, table in ((Documents(), ids), (Batched(), ids.expand(2, 5))):
        out = oracle.attention(variant, zeros, zeros, eye, tensors={"ids": table}).out
        assert torch.equal(out[0, 0] > 0, ids.view(-1, 1) == ids)
        assert len(trace(variant).program.tensors) == 1
    levels = torch.tensor([3, 4, 4, 5, 5])
    q, k = pairs(5, 5)
    wanted = (levels.view(1, -1) <= levels.view(-1, 1)) & (k <= q) & (q < levels.view(1, -1))
    out = oracle.attention(Scales(), zeros, zeros, eye, tensors={"levels": levels}).out
    assert torch.equal(out[0, 0] > 0, wanted)


def weights(function: Callable[..., Any], s: torch.Tensor) -> torch.Tensor:
    """The weights a normalizer gives to the scores ``s`` of shape [M, N]."""
    cls = type("W", (Variant,), {"scale": 1.0, "normalize": lambda self, s, row: function(s, row)})
    keys = s.shape[1]
    eye = torch.eye(keys).double().view(1, 1, keys, keys)
    trace(cls())
    return oracle.attention(cls(), s[None, None], eye, eye).out[0, 0]


def test_normalizers_equal_their_formulas() -> None:
    s = 3 * torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = s.softmax(-1)
    e = s.exp()
    positive = s.relu()
    expected = {
        "softmax": (dsl.softmax, p),
        "sink": (
            lambda s, row: dsl.sink_softmax(s, row, 0.7),
            e / (e.sum(-1, keepdim=True) + math.exp(0.7)),
        ),
        "one": (dsl.softmax_off_by_one, e / (1 + e.sum(-1, keepdim=True))),
        "sigmoid": (lambda s, row: dsl.sigmoid_weights(s, row, -2.0), (s - 2).sigmoid()),
        "relu": (lambda s, row: dsl.relu_weights(s, row, 0.3), 0.3 * positive),
        "relu2": (dsl.relu_squared_weights, positive**2),
        "sum": (dsl.sum_normalized, positive / (positive.sum(-1, keepdim=True) + 1e-6)),
        "signed": (
            dsl.signed_normalized,
            s / s.sum(-1, keepdim=True).abs().clamp(min=1),
        ),
        "cog": (dsl.cog, s.sign() * s.abs().softmax(-1)),
        "affine": (lambda s, row: dsl.affine_scaled(s, row, 1.5, -0.1), 1.5 * p - 0.1),
        "theta": (lambda s, row: dsl.top_theta(s, row, 0.5), torch.where(s > 0.5, p, 0)),
    }
    for name, (function, wanted) in expected.items():
        torch.testing.assert_close(weights(function, s), wanted, rtol=1e-12, atol=1e-12, msg=name)


def test_score_terms() -> None:
    class Biased(Variant):
        scale = 1.0
        slopes = Tensor("h")
        table = Tensor("h", "distances")

        def score(self, s, at):
            s = dsl.alibi(dsl.soft_cap(s, 5.0), at, self.slopes)
            return dsl.relative_table(s, at, self.table, 2)

        def normalize(self, s, row):
            return s

    g = torch.Generator().manual_seed(1)
    q = torch.randn(1, 2, 4, 4, generator=g, dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64).expand(1, 2, 4, 4)
    table = torch.randn(2, 5, generator=g, dtype=torch.float64)
    slopes = torch.tensor(dsl.alibi_slopes(2), dtype=torch.float64)
    i, j = pairs(4, 4)
    wanted = 5 * torch.tanh(q[0] / 5) - slopes.view(2, 1, 1) * (i - j).abs()
    wanted = wanted + table[:, (i - j).clamp(-2, 2) + 2]
    got = oracle.attention(Biased(), q, eye, eye, tensors={"slopes": slopes, "table": table}).out[0]
    torch.testing.assert_close(got, wanted)
    trace(Biased())


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert dsl.alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert len(dsl.alibi_slopes(12)) == 12
    assert dsl.alibi_slopes(12)[8:] == [2.0 ** (-0.5 * i) for i in (1, 3, 5, 7)]
    assert len(set(dsl.alibi_slopes(6))) == 6
