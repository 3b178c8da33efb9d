"""Planned tiles against the enumeration of every pair, and kernels that follow a plan against the oracle."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncompiler import compile as compile_variant
from attncompiler.dsl import (
    Tensor,
    Variant,
    block_causal,
    causal,
    chunked,
    dilated,
    document,
    global_window,
    halo,
    neighborhood,
    next_scale,
    power_of_two,
    prefix_lm,
    radial,
    shifted_chunks,
    sink_window,
    sliding_window,
    tree,
)
from attncompiler.errors import ArgumentsError, AttnCompilerError, MissingTensorError, ShapeError
from attncompiler.ir.expr import Expr, Index, Param, Size
from attncompiler.ir.interpreter import evaluate
from attncompiler.ir.printer import print_expression
from attncompiler.ir.tiles import needs_plan
from attncompiler.runtime.operator import Operator
from attncompiler.tile_map import EMPTY, FULL, PARTIAL, TileMap

MASKS: dict[str, Callable[[Any, Any], Any]] = {
    "causal": lambda self, at: causal(at),
    "bottom right": lambda self, at: at.k <= at.q + at.N - at.M,
    "window": lambda self, at: causal(at) & sliding_window(at, self.w),
    "window, both sides": lambda self, at: sliding_window(at, self.w),
    "sink and window": lambda self, at: sink_window(at, 5, self.w),
    "prefix": lambda self, at: prefix_lm(at, self.w),
    "chunked": lambda self, at: chunked(at, 48),
    "chunked at run time": lambda self, at: chunked(at, self.w),
    "blocks": lambda self, at: block_causal(at, 20),
    "dilated": lambda self, at: dilated(at, self.w, 3),
    "shifted": lambda self, at: shifted_chunks(at, 32, 16),
    "powers of two": lambda self, at: power_of_two(at, 16, 2),
    "global": lambda self, at: global_window(at, 7, self.w),
    "halo": lambda self, at: halo(at, 24, 5),
    "neighborhood": lambda self, at: neighborhood(at, 9, (512,), stride=4),
    "neighborhood, dilated": lambda self, at: neighborhood(at, 7, (500,), dilation=3),
    "neighborhood of a plane": lambda self, at: neighborhood(at, (5, 7), (20, 26)),
    "neighborhood of a volume": lambda self, at: neighborhood(at, 3, (5, 8, 13), stride=(1, 2, 3)),
    "radial": lambda self, at: radial(at, 30, 16),
    "documents": lambda self, at: document(at, self.ids),
    "causal documents": lambda self, at: causal(at) & document(at, self.ids),
    "documents or window": lambda self, at: document(at, self.ids) | sliding_window(at, self.w),
    "scales": lambda self, at: next_scale(at, self.ids),
    "tree": lambda self, at: tree(at, self.ends),
    "padding of a batch": lambda self, at: at.k < self.length[at.b],
    "documents of a batch": lambda self, at: document(at, self.batched),
    "window of a head": lambda self, at: causal(at) & (at.q - at.k < self.span[at.h]),
    "rows of a head": lambda self, at: (
        causal(at) & (self.far[at.b, at.h, at.q] | (at.q - at.k < 9))
    ),
    "death of keys": lambda self, at: causal(at) & (at.q < self.death[at.g, at.k]),
    "floating threshold": lambda self, at: self.gate[at.k] > 0.25,
    "pairs": lambda self, at: self.pairs[at.q, at.k],
    "nothing": lambda self, at: at.k < -1,
}
LONGEST, BATCH, HEADS, GROUPS = 512, 2, 4, 2


class _Inputs(Variant):
    w: int = 30
    ids = Tensor("k", dtype=int)
    ends = Tensor("k", dtype=int)
    batched = Tensor("b", "k", dtype=int)
    length = Tensor("b", dtype=int)
    span = Tensor("h", dtype=int)
    far = Tensor("b", "h", "q", dtype=bool)
    death = Tensor("g", "k", dtype=int)
    gate = Tensor("k")
    pairs = Tensor("rows", "k", dtype=bool)


class _Documents(Variant):
    ids = Tensor("k", dtype=int)

    def mask(self, at: Any) -> Any:
        return causal(at) & document(at, self.ids)


@functools.cache
def operator(name: str) -> Operator:
    return compile_variant(type("Planned", (_Inputs,), {"mask": MASKS[name]})())


def tensors_for(queries: int, keys: int, seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=rng)

    parts = int(whole(1, 9, 1))
    return {
        "ids": whole(0, parts, keys).sort().values if seed % 3 else whole(0, parts, keys),
        "ends": torch.arange(keys) + whole(1, 90, keys),
        "batched": whole(0, parts, BATCH, keys).sort(1).values,
        "length": whole(0, keys + 1, BATCH),
        "span": whole(1, 200, HEADS),
        "far": whole(0, 20, BATCH, HEADS, queries) == 0,
        "death": torch.arange(keys) + whole(1, 200, GROUPS, keys),
        "gate": torch.rand(keys, generator=rng),
        "pairs": whole(0, 50, queries + 600, keys) == 0,
    }


def allowed(
    op: Operator, queries: int, keys: int, q_start: int, tensors: dict[str, torch.Tensor], w: int
) -> torch.Tensor:
    """The mask of every pair, [B, H, M, N]."""
    h = torch.arange(HEADS)[:, None, None]
    leaves: dict[Expr, torch.Tensor] = {
        Index("b"): torch.arange(BATCH)[:, None, None, None],
        Index("h"): h,
        Index("g"): h // (HEADS // GROUPS),
        Index("q"): torch.arange(queries)[:, None] + q_start,
        Index("k"): torch.arange(keys),
        Param("q_start", "int"): torch.tensor(q_start),
        Size("M"): torch.tensor(queries),
        Size("N"): torch.tensor(keys),
    }
    program = op.compilation.plan.program
    leaves |= {Param("w", "int"): torch.tensor(w)}
    for p in program.params:
        if p.name != "w":
            leaves[Param(p.name, p.kind)] = torch.tensor(op.compilation.trace.params[p.name])

    def load(name: str, indices: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x = tensors[name]
        clamped = [i.clamp(0, n - 1) for i, n in zip(indices, x.shape, strict=True)]
        return x[tuple(clamped)]

    return evaluate(program.mask, leaves, load).expand(BATCH, HEADS, queries, keys)


def states_of(pairs: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    """The states by enumeration."""
    b, h, m, n = pairs.shape
    down, across = -(-m // tile[0]), -(-n // tile[1])
    some = torch.zeros(b, h, down, across, dtype=torch.bool)
    every = torch.zeros_like(some)
    for i in range(down):
        for j in range(across):
            part = pairs[..., i * tile[0] : (i + 1) * tile[0], j * tile[1] : (j + 1) * tile[1]]
            some[..., i, j], every[..., i, j] = part.any(-1).any(-1), part.all(-1).all(-1)
    return torch.where(every, FULL, torch.where(some, PARTIAL, EMPTY)).to(torch.int8)


sizes = st.one_of(st.integers(1, 70), st.integers(1, LONGEST))
sides = st.sampled_from([1, 8, 16, 31, 32, 64, 100, 128, 600])


@pytest.mark.parametrize("name", MASKS)
@settings(max_examples=12, deadline=None)
@given(
    sizes,
    sizes,
    st.tuples(sides, sides),
    st.integers(0, 40),
    st.integers(0, 99),
    st.integers(1, 200),
)
def test_tiles_are_classified_exactly(
    name: str, queries: int, keys: int, tile: tuple[int, int], q_start: int, seed: int, w: int
) -> None:
    if tile[0] * tile[1] < 64:  # so many tiles that enumeration takes long
        queries, keys = min(queries, 90), min(keys, 90)
    op, tensors = operator(name), tensors_for(queries, keys, seed)
    found = op.tile_map(
        (queries, keys),
        tile,
        batch=BATCH,
        heads=HEADS,
        groups=GROUPS,
        q_start=q_start,
        w=w,
        **tensors,
    )
    pairs = allowed(op, queries, keys, q_start, tensors, w)
    assert torch.equal(found.states.expand(BATCH, HEADS, -1, -1), states_of(pairs, tile))
    assert torch.equal(found.allowed.expand(BATCH, HEADS), pairs.sum((-1, -2)))


def test_bounds_of_what_tiles_read_settle_most_of_them() -> None:
    def says(name: str) -> tuple[str, str]:
        plan = operator(name).compilation.tile_plan
        return print_expression(plan.possible), print_expression(plan.certain)

    same = "row0_hi >= key0_lo and row0_lo <= key0_hi"
    assert says("causal documents")[0] == f"q_hi >= k_lo and {same}"
    assert says("causal documents")[1].startswith("q_lo >= k_hi and (row0_lo - key0_hi == 0")
    assert says("scales") == ("key0_lo <= row0_hi", "key0_hi <= row0_lo")
    assert says("tree") == ("q_hi >= k_lo and q_lo < key0_hi", "q_lo >= k_hi and q_hi < key0_lo")


PLANNED = [
    *("documents", "causal documents", "documents or window", "scales", "tree", "documents of a batch"),
    *("rows of a head", "death of keys", "floating threshold", "pairs"),
]  # fmt: skip
UNPROVED = [
    *("chunked at run time", "neighborhood, dilated", "neighborhood of a plane"),
    *("neighborhood of a volume", "radial"),
]  # fmt: skip


def test_masks_that_conditions_do_not_settle_are_planned() -> None:
    planned = [name for name in MASKS if needs_plan(operator(name).compilation.plan.program.mask)]
    assert planned == [name for name in MASKS if name in (*UNPROVED, *PLANNED)]


@pytest.mark.parametrize("name", [*PLANNED, *UNPROVED])
@pytest.mark.parametrize("q_start", [0, 37])
def test_planned_kernels_equal_the_oracle(name: str, q_start: int) -> None:
    """Long enough for a plan; gradients as well."""
    queries, keys = 331, 290
    op, tensors = operator(name), tensors_for(queries, keys, 7)
    if name == "documents of a batch" or "documents" in name or name == "scales":
        # The query's position indexes the table of keys.
        keys = queries + q_start
        tensors = tensors_for(queries, keys, 7)
    rng = torch.Generator().manual_seed(1)
    q = torch.randn(BATCH, HEADS, queries, 16, generator=rng, requires_grad=True)
    k, v = (
        torch.randn(BATCH, GROUPS, keys, 16, generator=rng, requires_grad=True) for _ in range(2)
    )
    dense = compile_variant(op.variant, backend="dense")
    weight = torch.randn(BATCH, HEADS, queries, 16, generator=rng)
    results = []
    for run in (op, dense):
        out = run(q, k, v, q_start=q_start, **tensors)
        results.append((out, *torch.autograd.grad((out * weight).sum(), (q, k, v))))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=2e-5)


def test_unread_tiles_are_not_touched() -> None:
    """Keys and values of other documents may hold anything, where no block of rows has queries of both."""
    op = operator("documents")
    ids = torch.arange(1152) // 192  # a multiple of every processor's blocks and tiles
    q, k, v = (torch.randn(1, 2, 1152, 32) for _ in range(3))
    wanted = op(q[:, :, :192], k[:, :, :192], v[:, :, :192], ids=ids[:192])
    k[:, :, 192:], v[:, :, 192:] = float("nan"), float("nan")
    found = op(q, k, v, ids=ids)[:, :, :192]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("inference", [False, True])
def test_a_plan_follows_the_contents_of_its_tensors(inference: bool) -> None:
    op, dense = compile_variant(_Documents), compile_variant(_Documents, backend="dense")
    with torch.inference_mode(inference):
        q, k, v = (torch.randn(1, 1, 300, 16) for _ in range(3))
        ids = torch.arange(300) // 100
        first = op(q, k, v, ids=ids)
        ids[50:200] = 5
        changed = op(q, k, v, ids=ids)
        wanted = dense(q, k, v, ids=ids)
        ids.numpy()[:] = 0  # behind torch's back
        hidden, wanted_hidden = op(q, k, v, ids=ids), dense(q, k, v, ids=ids)
    assert not torch.allclose(first, changed)
    torch.testing.assert_close(changed, wanted.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden, wanted_hidden.float(), rtol=1e-4, atol=1e-5)


def test_large_tensors_are_followed_too() -> None:
    op = operator("pairs")
    q, k, v = (torch.randn(1, 1, 1100, 8) for _ in range(3))
    pairs = torch.zeros(1100, 1100, dtype=torch.bool)
    assert pairs.numel() > 1 << 20
    tables = op._kernels.planner("float32", {"pairs": "bool"})
    tables.entries.clear()
    assert not op(q, k, v, pairs=pairs).any()
    assert len(tables.entries) == 1
    op(q, k, v, pairs=pairs[:])  # another view of the same memory
    assert len(tables.entries) == 1
    pairs[:, 3] = True
    torch.testing.assert_close(op(q, k, v, pairs=pairs), v[:, :, 3:4].expand_as(q))


def test_a_plan_is_made_once_for_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    op = operator("documents")
    tables = op._kernels.planner("float32", {"ids": "int64"})
    made: list[TileMap | None] = []
    library = tables.library
    monkeypatch.setattr(tables, "library", _Counting(library, made))
    q, k, v = (torch.randn(1, 1, 400, 16, requires_grad=True) for _ in range(3))
    ids = torch.arange(400) // 77
    for _ in range(3):
        op(q, k, v, ids=ids.clone()).sum().backward()
    assert len(made) == 1


class _Counting:
    def __init__(self, library: Any, made: list[Any]) -> None:
        self.library, self.made, self.plan = library, made, library.plan

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.made.append(None)
        return self.library(*arguments, **more)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"lengths": (64, 64)}, MissingTensorError),
        ({"lengths": (64, 64), "ids": torch.zeros(63, dtype=torch.int64)}, ShapeError),
        ({"lengths": (64, 64), "ids": torch.zeros(64)}, AttnCompilerError),
        ({"lengths": (64, 64), "ids": torch.zeros(64, dtype=torch.int64, device="meta")}, AttnCompilerError),
        ({"lengths": (-1, 64), "ids": torch.zeros(64, dtype=torch.int64)}, ArgumentsError),
        ({"lengths": (64,), "ids": torch.zeros(64, dtype=torch.int64)}, ArgumentsError),
        ({"lengths": 64, "tile": (8, 8, 8), "ids": torch.zeros(64, dtype=torch.int64)}, ArgumentsError),
        ({"lengths": 64, "tile": (0, 64), "ids": torch.zeros(64, dtype=torch.int64)}, ArgumentsError),
        ({"lengths": 64, "heads": 3, "groups": 2, "ids": torch.zeros(64, dtype=torch.int64)}, ArgumentsError),
        ({"lengths": 64, "q_start": 2**30, "ids": torch.zeros(64, dtype=torch.int64)}, ArgumentsError),
        ({"lengths": 64, "idds": torch.zeros(64, dtype=torch.int64)}, AttnCompilerError),
    ],
)  # fmt: skip
def test_maps_that_cannot_be(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        operator("documents").tile_map(**arguments)


def test_large_tensors_are_not_kept_alive() -> None:
    op = operator("pairs")
    q, k, v = (torch.randn(1, 1, 1100, 8) for _ in range(3))
    pairs = torch.zeros(1100, 1100, dtype=torch.bool)
    op(q, k, v, pairs=pairs)
    seen = weakref.ref(pairs)
    del pairs
    assert seen() is None
    pairs = torch.ones(1100, 1100, dtype=torch.bool)  # perhaps in the same memory
    torch.testing.assert_close(op(q, k, v, pairs=pairs), torch.softmax(q @ k.mT / 8**0.5, -1) @ v)


def test_large_tensors_may_get_other_memory() -> None:
    """``x.data = y`` is no change in place, and memory that was given back may come again at its old address."""
    op = operator("pairs")
    q, k, v = (torch.randn(1, 1, 1100, 8) for _ in range(3))
    first = torch.zeros(1100, 1100, dtype=torch.bool)
    pairs = torch.empty(0, dtype=torch.bool)
    pairs.data = first
    address, version = pairs.data_ptr(), pairs._version
    assert not op(q, k, v, pairs=pairs).any()
    (entry,) = op._kernels.planner("float32", {"pairs": "bool"}).entries[:1]
    (content,) = entry.contents
    assert content.same(pairs)
    other = torch.frombuffer(memoryview(first.numpy()).cast("B"), dtype=torch.bool).view(1100, 1100)
    pairs.data = other
    assert (pairs.data_ptr(), pairs._version) == (address, version)
    assert not content.same(pairs)


@pytest.mark.parametrize("length", [8, 300])
def test_a_mask_may_read_an_empty_tensor(length: int) -> None:
    """Reads clamp their index, and an empty tensor reads as 0."""

    class Empty(Variant):
        table = Tensor("rows", dtype=int)

        def mask(self, at: Any) -> Any:
            return self.table[at.k] >= 0

    x = torch.randn(1, 1, length, 8, requires_grad=True)
    out = compile_variant(Empty)(x, x, x, table=torch.zeros(0, dtype=torch.int64))
    torch.testing.assert_close(out, compile_variant(Variant)(x, x, x))
    out.sum().backward()
    assert x.grad is not None
