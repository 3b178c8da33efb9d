"""BlockSparse: a pair is attended when its block is listed and the variant's mask allows it."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import attncompiler
from attncompiler import BlockSparse, flex_attention
from attncompiler.dsl import Tensor as Input
from attncompiler.dsl import Variant, causal, sliding_window
from attncompiler.ir.expr import Expr, Param
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.tiles import CORNERS, tile_class
from attncompiler.runtime.block_table import Form, restricted
from attncompiler.runtime.errors import BlockListError
from tests.flex_reference import dense, window_of

pytestmark = pytest.mark.usefixtures("quick_builds")

B, H, G, D, DV = 2, 4, 2, 16, 24
LENGTHS = [1, 5, 63, 127, 129, 257]


class Plain(Variant):
    """Softmax over the listed blocks."""


class Causal(Variant):
    """A score that learns, a mask, a kept statistic."""

    bias = Input("h")

    def mask(self, at):  # type: ignore[no-untyped-def]
        return causal(at)

    def score(self, s, at):  # type: ignore[no-untyped-def]
        return s + self.bias[at.h] * (at.q - at.k)


class Window(Variant):
    """A mask with a run-time number, and a tensor whose name the table would like to have."""

    width: int = 40
    listed = Input("b", dtype="int")

    def mask(self, at):  # type: ignore[no-untyped-def]
        return sliding_window(at, self.width) & (at.k >= self.listed[at.b])


OPERATORS = {v: attncompiler.compile(v) for v in (Plain, Causal, Window)}
ORACLES = {v: attncompiler.compile(v, backend="dense") for v in (Plain, Causal, Window)}
# Each is a kernel or two to build: variant, block, extents of the leading axes, element type.
CASES: list[tuple[type[Variant], tuple[int, int], tuple[int, ...], torch.dtype]] = [
    (Plain, (64, 64), (), torch.float32),
    (Plain, (128, 16), (B, H), torch.float32),
    (Plain, (1, 50), (B, 1), torch.float32),
    (Plain, (50, 1), (1, G), torch.bfloat16),
    (Causal, (64, 128), (B, G), torch.float32),
    (Causal, (16, 16), (1, H), torch.float64),
    (Window, (128, 128), (H,), torch.bfloat16),
    (Window, (50, 64), (B, H), torch.float64),
]


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = (B, H, queries, D), (B, G, keys, D), (B, G, keys, DV)
    return [torch.randn(s, dtype=dtype) for s in shapes]


def extras(variant: type[Variant]) -> dict[str, Any]:
    if variant is Causal:
        return {"bias": torch.linspace(-0.02, 0.02, H)}
    return {"listed": torch.tensor([0, 9]), "width": 90} if variant is Window else {}


def random_lists(
    lead: tuple[int, ...], block: tuple[int, int], queries: int, keys: int, odds: float
) -> BlockSparse:
    """Shuffled lists with anything behind their ends."""
    rows, columns = -(-queries // block[0]), -(-keys // block[1])
    table = torch.rand(*lead, rows, columns) < odds
    order = torch.where(table, torch.rand(table.shape), 2).argsort(-1)
    counts = table.sum(-1)
    behind = torch.arange(columns) >= counts[..., None]
    return BlockSparse(torch.where(behind, -7, order).int(), counts, block)


@settings(max_examples=70, deadline=None)
@given(st.data())
def test_any_lists(data: st.DataObject) -> None:
    variant, block, lead, dtype = data.draw(st.sampled_from(CASES))
    queries, keys = data.draw(st.sampled_from(LENGTHS)), data.draw(st.sampled_from(LENGTHS))
    start = data.draw(st.sampled_from([0, 0, 1, 70, 200]))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    lists = random_lists(
        lead, block, queries, keys, data.draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    )
    given, rest = inputs(queries, keys, dtype), extras(variant) | {"q_start": start}
    out = OPERATORS[variant](*given, sparsity=lists, **rest)
    wanted = ORACLES[variant](*(x.double() for x in given), sparsity=lists, **rest)
    error = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out.double(), wanted, atol=error, rtol=error)


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize(("queries", "keys", "start"), [(129, 257, 70), (63, 5, 0)])
def test_gradients(case: int, queries: int, keys: int, start: int) -> None:
    variant, block, lead, dtype = CASES[case]
    lists, rest = random_lists(lead, block, queries, keys, 0.5), extras(variant)
    given = [x.requires_grad_() for x in inputs(queries, keys, dtype)]
    exact = [x.detach().double().requires_grad_() for x in given]
    go = torch.randn(B, H, queries, DV, dtype=dtype)
    learned = [rest["bias"].requires_grad_()] if variant is Causal else []
    out = OPERATORS[variant](*given, sparsity=lists, q_start=start, **rest)
    found = torch.autograd.grad(out, [*given, *learned], go)
    wide = {n: x.double() if n == "bias" else x for n, x in rest.items()}
    wanted = torch.autograd.grad(
        ORACLES[variant](*exact, sparsity=lists, q_start=start, **wide),
        [*exact, *learned],
        go.double(),
    )
    errors = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 4e-2}
    for x, y in zip(found, wanted, strict=True):
        size, error = max(1.0, float(y.abs().max())), errors[x.dtype]
        torch.testing.assert_close(x.double() / size, y.double() / size, atol=error, rtol=error)


def test_rows_without_a_block_give_nothing_and_learn_nothing() -> None:
    given = [x.requires_grad_() for x in inputs(130, 140)]
    lists = BlockSparse(torch.tensor([[0, 2], [1, -1], [0, 0]]), torch.tensor([2, 1, 0]), (64, 64))
    out, stats = attncompiler.compile(Plain)(*given, sparsity=lists, return_stats=True)
    assert not out[:, :, 128:].any()
    assert (stats["lse"][:, :, 128:] == -math.inf).all()
    gradients = torch.autograd.grad(out.square().sum(), given)
    assert not gradients[0][:, :, 128:].any()
    assert all(x.isfinite().all() for x in gradients)
    none = BlockSparse(
        torch.zeros(3, 0, dtype=torch.int8), torch.zeros(3, dtype=torch.int8), (64, 64)
    )
    assert not OPERATORS[Plain](*given, sparsity=none).any()
    q, k, v = inputs(0, 0)
    empty = BlockSparse(torch.zeros(0, 4).int(), torch.zeros(0).int())
    assert OPERATORS[Plain](q, k, v, sparsity=empty).shape == (B, H, 0, DV)


@pytest.mark.parametrize(("variant", "start"), [(Plain, 0), (Plain, 37), (Causal, 400)])
def test_blocks_that_no_list_names_are_not_read(variant: type[Variant], start: int) -> None:
    """NaN in their keys and values stays there, forward and backward."""
    q, k, v = inputs(256, 384)
    k[:, :, 192:], v[:, :, 192:] = math.nan, math.nan
    given = [x.requires_grad_() for x in (q, k, v)]
    lists = BlockSparse(torch.tensor([[0], [0]]), torch.tensor([1, 1]), (128, 192))
    out = OPERATORS[variant](*given, sparsity=lists, q_start=start, **extras(variant))
    assert out.isfinite().all()
    gradients = torch.autograd.grad(out.sum(), given)
    assert all(x.isfinite().all() for x in gradients)
    assert gradients[0].any()
    assert not gradients[1][:, :, 192:].any()


@pytest.mark.parametrize("variant", [Plain, Causal])
def test_tiles_of_listed_blocks_are_not_masked(variant: type[Variant]) -> None:
    """The conditions on tiles of up to two blocks say what the lists and the variant's own mask say."""
    trace, name = restricted(OPERATORS[variant].compilation.trace, Form((64, 32), False, ""))
    tiles = tile_class(trace.program.mask)
    rows, columns, start = 4, 9, 100
    table = torch.rand(rows, columns) < 0.6
    own = torch.arange(rows * 64)[:, None] + start >= torch.arange(columns * 32)
    pairs = table.repeat_interleave(64, 0).repeat_interleave(32, 1)
    pairs &= own | torch.tensor(variant is Plain)
    for q in range(0, rows * 64, 32):
        for k in range(0, columns * 32, 32):
            leaves: dict[Expr, Tensor] = {Param("q_start", "int"): torch.tensor(start)}
            corners = (q + start, q + start + 31), (k, k + 31)
            for axis, ends in zip("qk", corners, strict=True):
                leaves |= dict(zip(CORNERS[axis], map(torch.tensor, ends), strict=True))

            def load(tensor: str, indices: tuple[Tensor, ...]) -> Tensor:
                assert tensor == name
                return table[None, None][indices].long()

            part = pairs[q : q + 32, k : k + 32]
            assert bool(evaluate(tiles.possible, leaves, load)) == bool(part.any())
            assert bool(evaluate(tiles.certain, leaves, load)) == bool(part.all())


def test_dense_tables_and_transposed_lists() -> None:
    table = torch.rand(B, 1, 5, 7) < 0.4
    table[..., 6] = False
    lists = BlockSparse.from_dense(table, (16, 32))
    assert torch.equal(lists.dense(7), table)
    assert torch.equal(lists.dense(), table[..., :6])
    turned = lists.transposed(7)
    assert turned.block == (32, 16)
    for b, column in torch.cartesian_prod(torch.arange(B), torch.arange(7)).tolist():
        length = int(turned.counts[b, 0, column])
        named = turned.indices[b, 0, column]
        assert named[:length].tolist() == table[b, 0, :, column].nonzero()[:, 0].tolist()
        assert (named[length:] == -1).all()
    assert torch.equal(turned.transposed(5).dense(7), table)
    assert lists.transposed().dense(5).shape == (B, 1, 6, 5)
    for twin in (copy.deepcopy(lists), pickle.loads(pickle.dumps(lists))):
        assert torch.equal(twin.dense(7), table)
        assert twin.block == (16, 32)


@pytest.mark.parametrize("inference", [False, True])
def test_changes_of_lists_are_seen(inference: bool) -> None:
    with torch.inference_mode(inference):
        q, k, v = inputs(130, 140)
        lists = BlockSparse(
            torch.tensor([[0, 2], [1, 0], [2, 0]]), torch.tensor([2, 1, 1]), (64, 64)
        )

        def check() -> None:
            out = OPERATORS[Plain](q, k, v, sparsity=lists)
            torch.testing.assert_close(out, ORACLES[Plain](q, k, v, sparsity=lists))

        check()
        table = lists.__dict__["_known"].table
        check()
        assert lists.__dict__["_known"].table is table, "made once"
        lists.counts[1] = 2
        check()
        lists.indices[0, 1] = 1
        check()
        assert not torch.equal(lists.__dict__["_known"].table, table)
        lists.counts[2] = 3
        with pytest.raises(BlockListError):
            check()


def test_lists_may_get_other_memory() -> None:
    """``x.data = y`` is no change in place."""
    q, k, v = inputs(130, 140)
    lists, others = (
        BlockSparse(torch.tensor([[0], [1], [row]]), torch.tensor([1, 1, 1]), (64, 64))
        for row in (0, 2)
    )
    OPERATORS[Plain](q, k, v, sparsity=lists)
    wanted = OPERATORS[Plain](q, k, v, sparsity=others)
    lists.indices.data = others.indices.clone()
    torch.testing.assert_close(OPERATORS[Plain](q, k, v, sparsity=lists), wanted)


def test_modules_autocast_and_flex_attention_take_lists() -> None:
    q, k, v = inputs(129, 257)
    lists = random_lists((B, H), (64, 64), 129, 257, 0.5)
    module = OPERATORS[Causal].module(bias=torch.zeros(H))
    wanted = ORACLES[Causal](q, k, v, bias=torch.zeros(H), sparsity=lists, q_start=9)
    torch.testing.assert_close(module(q, k, v, sparsity=lists, q_start=9), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = module(q, k, v, sparsity=lists, q_start=9)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), wanted, atol=2e-2, rtol=2e-2)

    pairs = lists.dense(5).repeat_interleave(64, 2).repeat_interleave(64, 3)[:, :, :129, :257]
    exact = dense(q, k, v, None, window_of(50), pairs)
    out, lse = flex_attention(
        q, k, v, block_mask=lists, mask_mod=window_of(50), enable_gqa=True, return_lse=True
    )
    torch.testing.assert_close(out.double(), exact.out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), exact.lse, atol=1e-5, rtol=1e-5)
