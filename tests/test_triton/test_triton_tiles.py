"""Which tiles Triton kernels visit: runs that they find and lists that are planned, against every pair."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from triton.runtime import interpreter

from attncompiler import compile as compile_variant
from attncompiler import errors
from attncompiler.dsl import Variant, causal
from attncompiler.runtime.operator import Operator
from attncompiler.runtime.tile_tables import Sizes
from attncompiler.runtime.triton_planner import Planner
from attncompiler.tile_map import EMPTY, FULL
from tests.test_tile_plan import (
    BATCH,
    GROUPS,
    HEADS,
    MASKS,
    PLANNED,
    UNPROVED,
    _Documents,
    _Inputs,
    allowed,
    states_of,
    tensors_for,
)
from tests.triton_calls import engine_of, use_tiles

Tile = tuple[int, int]


def operator(name: str) -> Operator:
    op = compile_variant(type("Planned", (_Inputs,), {"mask": MASKS[name]})(), backend="triton")
    assert isinstance(op, Operator)
    return op


def by_runs(name: str) -> bool:
    return engine_of(operator(name)).sources.signature.runs


RUNS = [name for name in MASKS if by_runs(name)]


def test_masks_with_closed_forms_need_no_lists() -> None:
    assert {"causal", "bottom right", "window", "sink and window", "prefix", "chunked"} <= set(RUNS)
    assert not set(RUNS) & {*PLANNED, *UNPROVED}


def test_a_mask_that_allows_nothing() -> None:
    op = operator("nothing")
    q, k, v = (torch.randn(1, 1, n, 16, requires_grad=True) for n in (20, 70, 70))
    out = op(q, k, v)
    assert not out.any()
    assert not any(x.any() for x in torch.autograd.grad(out.sum(), (q, k, v)))


@dataclass
class Walks:
    """The tiles of queries and of keys that walks were sent to, by whether they mask."""

    full: set[Tile]
    partial: set[Tile]

    def record(self, tiles: set[Tile], full: bool) -> None:
        mine = self.full if full else self.partial
        assert not tiles & (self.full | self.partial), "a tile is visited twice"
        mine |= tiles


@contextmanager
def spied(module: ModuleType, name: str, walks: Walks) -> Iterator[None]:
    """A walk that only notes where it is sent; its state stays as it was."""
    original = getattr(module, name)
    tree = ast.parse(inspect.getsource(original.fn).partition("\n")[2])
    returned = tree.body[0].body[-1].value  # type: ignore[attr-defined]
    names = [n.id for n in ast.walk(returned) if isinstance(n, ast.Name)]
    signature = inspect.signature(original.fn)

    def walk(*arguments: Any) -> Any:
        given = signature.bind(*arguments).arguments
        builder = interpreter.interpreter_builder
        x, count = builder.grid_idx[0], builder.grid_dim[0]
        by_keys = name != "walk_columns"
        block = count - 1 - x if by_keys and module.REVERSED else x
        steps = range(int(given["start"]), int(given["stop"]))
        tiles = {(block, t) if by_keys else (t, block) for t in steps}
        walks.record(tiles, full=not bool(getattr(given["PARTIAL"], "value", given["PARTIAL"])))
        found = tuple(given[n] for n in names)
        return found if len(found) > 1 else found[0]

    setattr(module, name, walk)
    try:
        yield
    finally:
        setattr(module, name, original)


def check(walks: Walks, states: torch.Tensor, whole: set[Tile]) -> None:
    """Full tiles are full and whole, all tiles with pairs are visited, and no others."""
    at = {(i, j): int(states[i, j]) for i in range(states.shape[0]) for j in range(states.shape[1])}
    assert walks.full == {t for t, s in at.items() if s == FULL and t in whole}
    assert walks.full | walks.partial == {t for t, s in at.items() if s != EMPTY}


# Lengths, q_start, tile, window.
Call = tuple[tuple[int, int], int, Tile, int]
CALLS: list[Call] = [
    ((70, 90), 0, (16, 16), 30), ((50, 131), 81, (16, 32), 33), ((90, 70), 3, (32, 16), 7),
    ((1, 100), 99, (16, 16), 16), ((33, 1), 3, (16, 16), 1), ((129, 64), 5, (32, 32), 64),
    ((64, 64), 0, (16, 32), 1000), ((47, 96), 40, (32, 16), 0), ((100, 300), 250, (64, 32), -5),
    ((257, 63), 0, (16, 64), 100), ((300, 290), 1, (32, 32), 61), ((63, 127), 64, (16, 16), 64),
]  # fmt: skip


@pytest.mark.parametrize(
    "calls",
    [pytest.param(CALLS[:2], id="few"), pytest.param(CALLS, id="many", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", RUNS)
def test_kernels_find_the_tiles_of_their_mask(name: str, calls: list[Call]) -> None:
    op = operator(name)
    sources = engine_of(op).sources
    least = op._limits["w"][0] if "w" in op._limits else None
    for lengths, q_start, tile, w in calls:
        if least is not None and w < least:
            with pytest.raises(errors.TooSmallError):
                op(*(torch.randn(1, 1, n, 1) for n in (20, 20, 20)), w=w)
            continue
        (m, n), tensors = lengths, tensors_for(*lengths, 1)
        # One batch and one head.
        tensors = {x: t[:1] if x in ("length", "span") else t for x, t in tensors.items()}
        tensors = {x: t for x, t in tensors.items() if x in op._reads}
        types = {x: str(t.dtype)[6:] for x, t in tensors.items()}
        use_tiles(op, *tile)
        states = states_of(allowed(op, m, n, q_start, tensors, w)[:1, :1], tile)[0, 0]
        q, k, v = (torch.randn(1, 1, length, 1) for length in (m, n, n))
        whole = {(i, j) for i in range(-(-m // tile[0])) for j in range(n // tile[1])}
        module = sources.forward(("float32", 1, 1), types)
        forward = Walks(set(), set())
        with spied(module, "walk_0", forward):
            op(q, k, v, q_start=q_start, w=w, **tensors)
        check(forward, states, whole)
        # The backward's two kernels, each over its own side.
        rows, columns = Walks(set(), set()), Walks(set(), set())
        _, module = sources.backward(("float32", 1, 1), types, frozenset())
        with spied(module, "walk_0", rows), spied(module, "walk_columns", columns):
            q, k, v = (x.requires_grad_() for x in (q, k, v))
            op(q, k, v, q_start=q_start, w=w, **tensors).sum().backward()
        check(rows, states, whole)
        whole = {(i, j) for i in range(m // tile[0]) for j in range(-(-n // tile[1]))}
        check(columns, states, whole)


def planner_of(op: Operator) -> Planner:
    """The planner of an operator, also of one whose kernels find their tiles."""
    engine = engine_of(op)
    sources = engine.sources
    sources.signature = replace(sources.signature, masked=True, runs=False)
    types = {"ids": "int64", "ends": "int64", "batched": "int64", "length": "int64"}
    types |= {"span": "int64", "far": "bool", "death": "int64", "gate": "float32", "pairs": "bool"}
    planner = engine._planner(("float32", 1, 1), types)
    assert planner is not None
    return planner


LISTED = [*PLANNED, *UNPROVED, "sink and window", "padding of a batch"]


@pytest.mark.parametrize(
    ("name", "transposed"),
    [
        pytest.param(name, transposed, marks=[] if i % 2 == transposed else [pytest.mark.slow])
        for i, name in enumerate(LISTED)
        for transposed in (False, True)
    ],
)
def test_lists_are_the_enumerated_tiles(name: str, transposed: bool) -> None:
    op = operator(name)
    planner = planner_of(op)
    for lengths, q_start, tile, w in CALLS[2:3] if transposed else CALLS[1:2]:
        (m, n), tensors = lengths, tensors_for(*lengths, 1)
        lists = planner.lists(
            torch.device("cpu"),
            Sizes(BATCH, HEADS, GROUPS, m, n),
            q_start,
            {
                argument: w if x == "w" else op._params[x]
                for x, argument in planner.signature.params
            },
            {f"t_{x}": t for x, t in tensors.items()},
            tile,
            transposed=transposed,
        ).lists
        states = states_of(allowed(op, m, n, q_start, tensors, w), tile)
        whole = torch.zeros(states.shape[2:], dtype=torch.bool)
        whole[: m // tile[0] if transposed else None, : n // tile[1]] = True
        if transposed:
            states, whole = states.mT, whole.mT
        full, some = (states == FULL) & whole, states != EMPTY
        shape = states.shape
        for b in range(shape[0]):
            for h in range(shape[1]):
                mine = lists[b if len(lists) > 1 else 0, h if lists.shape[1] > 1 else 0]
                for i in range(shape[2]):
                    first, second = (x[1 : 1 + x[0]].tolist() for x in mine[i])
                    assert [*sorted(first)] == first
                    assert sorted(first + second) == some[b, h, i].nonzero()[:, 0].tolist()
                    found = full[b, h, i].nonzero()[:, 0].tolist()
                    if planner.signature.exact:
                        assert first == found
                    assert set(first) <= set(found)


@pytest.mark.parametrize("name", ["window", "chunked"])
def test_runs_and_lists_give_the_same(name: str) -> None:
    """The order of tiles is the same, and so is every sum."""
    results = []
    for listed in (False, True):
        op = operator(name)
        if listed:
            planner_of(op)
        use_tiles(op, 16, 32)
        torch.manual_seed(1)
        q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for n in (50, 70, 70))
        out = op(q, k, v, q_start=20)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
        assert bool(engine_of(op)._planners) == listed
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_lists_are_those_of_the_newest_contents() -> None:
    op, dense = compile_variant(_Documents, backend="triton"), compile_variant(_Documents, "dense")
    assert isinstance(op, Operator)
    use_tiles(op, 16, 32)
    q, k, v = (torch.randn(1, 1, 70, 16) for _ in range(3))
    ids = torch.arange(70) // 30

    def right() -> bool:
        wanted = dense(q, k, v, ids=ids).float()
        return torch.allclose(op(q, k, v, ids=ids), wanted, rtol=1e-4, atol=1e-5)

    assert right()
    (planner,) = engine_of(op)._planners.values()
    assert len(planner.entries) == 1
    assert right()
    assert len(planner.entries) == 1
    ids[20:60] = 5
    assert right()
    assert len(planner.entries) == 2
    ids.data = torch.zeros(70, dtype=torch.int64)
    assert right()
    ids.numpy()[35:] = 1  # behind torch's back
    assert right()
    with torch.inference_mode():
        ids = torch.arange(70) // 11
        assert right()
        ids[3:9] = 4
        assert right()


@pytest.mark.parametrize("backward", [False, True])
def test_unread_tiles_are_not_touched(backward: bool) -> None:
    """Keys and values of other documents may hold anything."""
    op = operator("documents")
    use_tiles(op, 32, 32)
    ids = torch.arange(128) // 64
    q, k, v = (torch.randn(1, 1, 128, 16) for _ in range(3))
    wanted = op(q[:, :, :64], k[:, :, :64], v[:, :, :64], ids=ids[:64])
    k[:, :, 64:], v[:, :, 64:] = float("nan"), float("nan")
    if not backward:
        torch.testing.assert_close(op(q, k, v, ids=ids)[:, :, :64], wanted)
        return
    q.requires_grad_()
    op(q, k, v, ids=ids)[:, :, :64].sum().backward()
    assert q.grad is not None
    assert q.grad[:, :, :64].isfinite().all()


def test_nothing_is_compiled_here() -> None:
    assert not isinstance(triton.language.sum, triton.JITFunction)


class _Window(Variant):
    w: int = 3

    def mask(self, at: Any) -> Any:
        return causal(at) & (at.q - at.k < self.w)


@pytest.mark.parametrize("w", [2**63 - 1, -(2**63), 2**31, 2**40])
def test_numbers_that_closed_forms_cannot_add_to(w: int) -> None:
    """What runs are found by is a sum with the window, which might overflow: lists are planned then."""
    op, dense = (compile_variant(_Window, backend=b) for b in ("triton", "dense"))
    assert isinstance(op, Operator)
    use_tiles(op, 16, 32)
    results = []
    for run in (op, dense):
        torch.manual_seed(1)
        q, k, v = (torch.randn(1, 1, n, 16, requires_grad=True) for n in (20, 40, 40))
        out = run(q, k, v, q_start=5, w=w)
        grads = torch.autograd.grad(out.sum(), (q, k, v)) if w > 0 else ()
        results.append((out, *grads))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-5)
