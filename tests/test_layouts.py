"""Layouts change the order of tokens inside an operator, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from attncompiler import BlockSparse
from attncompiler import compile as compile_variant
from attncompiler.dsl import Boxes, Tensor, Variant, neighborhood
from attncompiler.errors import DeclarationError, LayoutDeclarationError, ShapeError
from attncompiler.ir.passes.arrange import arrange
from attncompiler.runtime.arrangement import Arrangement
from attncompiler.runtime.errors import LayoutStartError

pytestmark = pytest.mark.usefixtures("quick_builds")


@st.composite
def layouts(draw: st.DrawFn) -> Boxes:
    grid = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))

    def part(most: int = 12) -> tuple[int, ...]:
        return tuple(draw(st.integers(1, min(most, n))) for n in grid)

    return Boxes(grid, part(), part(), dilation=part(3))


@settings(max_examples=80, deadline=None)
@given(layouts(), st.booleans(), st.integers(0, 5))
def test_an_order_is_a_permutation_in_boxes(layout: Boxes, keys: bool, more: int) -> None:
    length = layout.size + more
    order = layout.order(length, keys=keys)
    assert torch.equal(order.sort().values, torch.arange(length))
    assert torch.equal(order[layout.inverse(length, keys=keys)], torch.arange(length))
    assert torch.equal(order[layout.size :], torch.arange(layout.size, length))
    x = torch.randn(2, length)
    assert torch.equal(layout.restored(layout.arranged(x, 1, keys=keys), 1, keys=keys), x)
    # Boxes that are not cut come first, each in one piece: one residue class, one box of its members.
    tile = layout.key_tile if keys else layout.tile
    assert tile is not None
    assert isinstance(layout.dilation, tuple)
    size = int(torch.tensor(tile).prod())
    whole = 1
    for n, t, d in zip(layout.grid, tile, layout.dilation, strict=True):
        whole *= sum(((n - r + d - 1) // d) // t for r in range(d))
    for box in order[: whole * size].view(whole, size):
        rest = box
        for n, t, d in reversed(list(zip(layout.grid, tile, layout.dilation, strict=True))):
            c, rest = rest % n, rest // n
            assert len((c % d).unique()) == 1
            assert len((c // d // t).unique()) == 1


class _Plane(Variant):
    gate = Tensor("q")
    bias = Tensor("h", "k")

    def mask(self, at: Any) -> Any:
        return neighborhood(at, (5, 7), (18, 22), stride=(2, 1)) | (at.k >= 18 * 22)

    def score(self, s: Any, at: Any) -> Any:
        return s + self.bias[at.h, at.k] - 0.01 * abs(at.q - at.k)

    def normalize(self, s: Any, row: Any) -> Any:
        row.keep("largest", row.max(s))
        return super().normalize(s, row)

    def output(self, o: Any, at: Any) -> Any:
        return o * self.gate[at.q]


GRID = (18, 22)
LAYOUTS = {
    "boxes": Boxes(GRID, (8, 8)),
    "other boxes of keys": Boxes(GRID, (2, 22), (4, 8)),
    "residues": Boxes(GRID, (3, 4), dilation=(2, 3)),
    "lines": Boxes(GRID, (1, 1)),
}


def inputs(length: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, requires_grad=True)

    tokens = [random(2, heads, length, 16) for heads in (4, 2, 2)]
    return tokens, {"gate": random(length), "bias": random(4, length)}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("more", [0, 9])
def test_results_and_gradients_do_not_depend_on_the_layout(name: str, more: int) -> None:
    arranged = type("Arranged", (_Plane,), {"layout": LAYOUTS[name]})
    tokens, tensors = inputs(18 * 22 + more)
    results = []
    for op in (compile_variant(arranged), compile_variant(_Plane, backend="dense")):
        out, stats = op(*tokens, return_stats=True, **tensors)
        leaves = (*tokens, *tensors.values())
        loss = (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum()
        loss = loss + stats["largest"].square().mean()
        results.append((out, stats["largest"], *torch.autograd.grad(loss, leaves)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=2e-5)


def test_tokens_that_the_caller_permutes() -> None:
    layout = Boxes(GRID, (8, 8), permuted_by="caller")
    arranged = type("Arranged", (_Plane,), {"layout": layout})
    tokens, tensors = inputs(18 * 22)
    wanted = compile_variant(_Plane)(*tokens, **tensors)
    moved = [layout.arranged(x) for x in tokens]
    found = compile_variant(arranged)(*moved, **tensors)
    torch.testing.assert_close(layout.restored(found), wanted, rtol=1e-5, atol=1e-5)
    dense = compile_variant(arranged, backend="dense")(*moved, **tensors)
    torch.testing.assert_close(layout.restored(dense), wanted, rtol=1e-5, atol=1e-5)


class _Wide(Variant):
    def mask(self, at: Any) -> Any:
        return neighborhood(at, (24, 24), (64, 64), stride=(16, 8))


def test_boxes_that_fit_the_window_need_no_mask() -> None:
    """30 x 48 x 80 tokens, window 18 x 24 x 24: the case that Generalized Neighborhood Attention calls perfect."""

    class Video(Variant):
        layout = Boxes((30, 48, 80), tile=(2, 8, 8))

        def mask(self, at: Any) -> Any:
            return neighborhood(at, (18, 24, 24), (30, 48, 80), stride=(16, 8, 8))

    found = compile_variant(Video).tile_map(30 * 48 * 80, (128, 128))
    counts = found.states.flatten().int().bincount(minlength=3)
    assert counts[1] == 0
    assert counts.sum() / counts[2] == pytest.approx(11.11, abs=0.01)


def test_a_square_is_worked_on_in_boxes() -> None:
    boxed = type("Boxed", (_Wide,), {"layout": Boxes((64, 64), (16, 8), (8, 8))})
    rows, boxes = (compile_variant(v).tile_map(4096, (128, 64)).states for v in (_Wide, boxed))
    assert (boxes != 0).sum() < 0.65 * (rows != 0).sum()
    assert (boxes == 2).sum() > 0 == (rows == 2).sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_layouts_under_torch_compile(dynamic: bool) -> None:
    op = compile_variant(type("Arranged", (_Plane,), {"layout": LAYOUTS["boxes"]}))
    tokens, tensors = inputs(18 * 22)
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*tokens, **tensors), op(*tokens, **tensors))


def test_a_device_gets_the_orders_once() -> None:
    """But for a trace, whose tensors are none."""
    arrangement = Arrangement("Plane", LAYOUTS["boxes"], (), ())
    cpu = torch.device("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert arrangement.tables(cpu) is not arrangement.tables(cpu)
    found = arrangement.tables(cpu)
    assert arrangement.tables(cpu) is found
    for table, wanted in zip(found, (*arrangement.orders, arrangement.inverse), strict=True):
        assert torch.equal(table, wanted)


def test_a_program_without_positions_stays_the_same() -> None:
    program = compile_variant(Variant).compilation.trace.program
    assert arrange(program, "a", "b") is program


def test_names_of_tensors_stay_the_users() -> None:
    class Named(Variant):
        order_k = Tensor("k", dtype=int)
        layout = Boxes((4, 4), (2, 2))

        def mask(self, at: Any) -> Any:
            return self.order_k[at.k] >= at.q

    q, k, v = (torch.randn(1, 1, 16, 8) for _ in range(3))
    order = torch.arange(16).flip(0)
    found, wanted = (
        compile_variant(Named, backend=b)(q, k, v, order_k=order) for b in ("cpp", "dense")
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        ((8, 8), (0, 4)),
        ((8, 8), (4,)),
        ((8, 8), (9, 4)),
        ((8, -8), (4, 4)),
        ((8, 8), (4.0, 4)),
        ((), ()),
        ((8, 8), (4, 4), None, (9, 1)),
        ((8, 8), (4, 4), None, 1, "me"),
        ((8, 8), (4, 4), (2, 2), 1, "caller"),
    ],
)
def test_layouts_that_cannot_be(arguments: Any) -> None:
    with pytest.raises(LayoutDeclarationError, match="of a layout cannot be") as caught:
        Boxes(*arguments)
    assert caught.value.location is not None
    assert caught.value.location.filename == __file__


def test_calls_that_do_not_fit_a_layout() -> None:
    class Small(Variant):
        layout = Boxes((8, 8), (4, 4))

        def mask(self, at: Any) -> Any:
            return at.k <= at.q

    op = compile_variant(Small)
    q, k, v = (torch.randn(1, 1, 64, 8) for _ in range(3))
    with pytest.raises(ShapeError, match="it has 63 tokens, the grid"):
        op(q[:, :, 1:], k, v)
    with pytest.raises(LayoutStartError):
        op(q, k, v, q_start=1)
    with pytest.raises(ShapeError):
        op(q[0], k, v)
    with pytest.raises(DeclarationError, match="is no layout"):
        type("Wrong", (Variant,), {"layout": (8, 8)})


@pytest.mark.parametrize("permuted_by", ["op", "caller"])
def test_block_lists_count_boxes_of_a_layout(permuted_by: Any) -> None:
    layout = Boxes(GRID, (6, 11), permuted_by=permuted_by)
    arranged = type("Arranged", (_Plane,), {"layout": layout})
    tokens, tensors = inputs(18 * 22)
    table = torch.rand(6, 3, generator=torch.Generator().manual_seed(2)) < 0.6
    lists = BlockSparse.from_dense(table, (66, 132))
    results = []
    for backend in ("cpp", "dense"):
        out = compile_variant(arranged, backend=backend)(*tokens, sparsity=lists, **tensors)
        results.append((out, *torch.autograd.grad(out.square().sum(), tokens)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-4)
