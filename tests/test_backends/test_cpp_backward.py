"""Generated backward kernels against float64 autograd of the formulas, on variants that between them use every part."""

from __future__ import annotations

import ctypes
import mmap
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cpp_harness import BUILDS, runs_here

import attncompiler
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.dsl import (
    Tensor,
    Variant,
    causal,
    exp,
    log,
    maximum,
    minimum,
    sigmoid,
    sqrt,
    tanh,
)
from tests.gradients import describe

DTYPES = ("float32", "bfloat16", "float16", "float64")


class Plain(Variant):
    """No mask: every tile is full."""


class Window(Variant):
    """Partial and empty tiles; rows without keys where queries run past the keys."""

    window: int = 20

    def mask(self, at):  # type: ignore[no-untyped-def]
        return causal(at) & (at.q - at.k < self.window)


class Pairs(Variant):
    """A gradient for every pair, one tensor with and one without an axis for the batch, and documents."""

    bias = Tensor("h", "q", "k")
    lift = Tensor("b", "k", "q")
    ids = Tensor("b", "k", dtype="int", low=0, high=3)

    def score(self, s, at):  # type: ignore[no-untyped-def]
        bias = self.bias[at.h, at.q, at.k] + self.lift[at.b, at.k, at.q]
        return 5 * tanh((s + bias) / 5)

    def mask(self, at):  # type: ignore[no-untyped-def]
        return (self.ids[at.b, at.k] + at.q) % 3 != 0


class Keys(Variant):
    """Gradients that are summed over the rows of a block: one scalar a key, of a head or of all of them."""

    decay = Tensor("b", "k")
    by_head = Tensor("h", "k")
    by_group = Tensor("g", "k")

    def score(self, s, at):  # type: ignore[no-untyped-def]
        return (
            s * sigmoid(self.by_group[at.g, at.k])
            + self.decay[at.b, at.k]
            + self.by_head[at.h, at.k]
        )

    def mask(self, at):  # type: ignore[no-untyped-def]
        return causal(at)


class KeysOfGroups(Variant):
    """The same without heads, so that a block may hold rows of several of them."""

    decay = Tensor("b", "k")

    def score(self, s, at):  # type: ignore[no-untyped-def]
        return s - self.decay[at.b, at.k] ** 2


class Rows(Variant):
    """Gradients of what a row reads, in the score and in a kept statistic that has a gradient of its own."""

    slope = Tensor("h")
    heat = Tensor("b", "h", "q", low=0.3, high=0.8)
    all = Tensor()

    def score(self, s, at):  # type: ignore[no-untyped-def]
        return (
            s * self.heat[at.b, at.h, at.q] - 0.01 * self.slope[at.h] * abs(at.q - at.k) * self.all
        )

    def normalize(self, s, row):  # type: ignore[no-untyped-def]
        e = exp(s - row.max(s))
        row.keep("total", log(row.sum(e)) * self.slope[row.h])
        return e / row.sum(e)


class Table(Variant):
    """A table that pairs, rows and tasks share: many add to one element."""

    table = Tensor(9)
    far = Tensor("h", 5)

    def score(self, s, at):  # type: ignore[no-untyped-def]
        near = maximum(minimum(at.q - at.k, 4), -4) + 4
        return s + self.table[near] * self.far[at.h, abs(at.q - at.k) % 5]


class Epilogue(Variant):
    """Reductions over the value features, and tensors read for each of them or once a row."""

    gain = Tensor("h", "d")
    shift = Tensor("d")
    gate = Tensor("b", "q")

    def mask(self, at):  # type: ignore[no-untyped-def]
        return causal(at)

    def output(self, o, at):  # type: ignore[no-untyped-def]
        centred = o - at.mean(o)
        scaled = centred / sqrt(at.mean(centred * centred) + 1e-2) * self.gain[at.h, at.d]
        return (
            scaled * sigmoid(self.gate[at.b, at.q])
            + self.shift[at.d]
            + 0.1 * at.stats.lse * (at.q < 2**20)
        )


class Passes(Variant):
    """Several walks over the keys: statistics that the result really depends on, extrema among them."""

    power: float = 0.5

    def normalize(self, s, row):  # type: ignore[no-untyped-def]
        z = (s - row.mean(s)) / sqrt(row.mean((s - row.mean(s)) ** 2) + 0.1)
        top, low = row.max(z), row.min(z)
        w = exp(z - top) * (1 + self.power * (z - low) / (top - low + 1))
        return w / row.sum(w)


class Unnormalised(Variant):
    """No statistic in the weight, one with a gradient in the epilogue; rows without keys."""

    def normalize(self, s, row):  # type: ignore[no-untyped-def]
        row.keep("mass", row.sum(sigmoid(s)))
        return sigmoid(s - 1)

    def mask(self, at):  # type: ignore[no-untyped-def]
        return at.k + 3 < at.q

    def output(self, o, at):  # type: ignore[no-untyped-def]
        return o / (at.stats.mass + 0.1)


VARIANTS = [
    *(Plain, Window, Pairs, Keys, KeysOfGroups, Rows, Table, Epilogue, Passes, Unnormalised),
]
# Few rows, some blocks of rows and tiles of keys, grouped heads, every layout, starts, more queries than keys.
CASES = [
    Case(B=2, H=6, G=2, M=70, N=131, D=31, Dv=24, q_start=61, seed=1),
    Case(B=1, H=3, G=1, M=129, N=97, D=31, Dv=24, layout="swapped", seed=2),
    Case(B=2, H=2, G=2, M=5, N=49, D=31, Dv=24, q_start=44, layout="padded", seed=3),
    Case(B=3, H=4, G=1, M=3, N=7, D=31, Dv=24, q_start=4, layout="broadcast", seed=4),
    Case(B=1, H=8, G=1, M=9, N=60, D=31, Dv=24, q_start=51, seed=5),
    Case(B=1, H=1, G=1, M=1, N=1, D=31, Dv=24, q_start=4, seed=6),
    Case(B=2, H=2, G=1, M=4, N=0, D=31, Dv=24, seed=7),
    Case(B=1, H=2, G=1, M=0, N=4, D=31, Dv=24, seed=8),
    Case(B=0, H=2, G=1, M=4, N=4, D=31, Dv=24, seed=9),
]


def assert_gradients(checker: Checker, cases: list[Case], dtype: str) -> None:
    for case in cases:
        found = checker.gradients(replace(case, dtype=dtype))
        wrong = describe(tuple(c for c in found if not c.passed))
        assert not wrong, f"{case}\n{wrong}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_part(variant: type[Variant]) -> None:
    assert_gradients(Checker(variant()), CASES, "float32")


def shaped(cases: list[Case], head_dim: int, value_dim: int) -> list[Case]:
    return [replace(case, D=head_dim, Dv=value_dim) for case in cases]


SIZES = [
    *(("float32", d, d) for d in (1, 16, 64, 72, 128, 256)),
    ("float32", 512, 31),
    *((dtype, d, dv) for dtype in DTYPES[1:] for d, dv in ((31, 72), (64, 64))),
]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}-{s[1]}-{s[2]}")
def test_sizes_groups_and_layouts(size: tuple[str, int, int]) -> None:
    dtype, *dims = size
    assert_gradients(Checker(Window()), shaped(CASES, *dims), dtype)


@pytest.mark.parametrize("build", [b for b in BUILDS if b != "native"])
@pytest.mark.parametrize(
    ("variant", "dtype"), [*((Window, dtype) for dtype in DTYPES), (Pairs, "float32")]
)
def test_narrower_instruction_sets(
    variant: type[Variant], dtype: str, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not runs_here(build):
        pytest.skip(f"this machine has no {build} instructions")
    monkeypatch.setenv("ATTNCOMPILER_CXXFLAGS", BUILDS[build])
    assert_gradients(Checker(variant()), CASES[:3], dtype)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def gradients(
    op: attncompiler.Operator,
    inputs: list[torch.Tensor],
    grad: torch.Tensor,
    wanted: tuple[int, ...] = (0, 1, 2),
    **arguments: object,
) -> tuple[torch.Tensor, ...]:
    """Gradients of q, k, v (as ``wanted`` says) and of the floating keyword arguments that require one."""
    mine = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    out = op(*mine, **arguments)
    leaves = [x for x in (*mine, *arguments.values()) if getattr(x, "requires_grad", False)]
    return torch.autograd.grad(out, leaves, grad)


def test_only_what_is_wanted() -> None:
    op, grad = attncompiler.compile(Window), draw(1, 4, 50, 16)
    inputs = [draw(1, 4, 50, 16), draw(1, 2, 70, 16), draw(1, 2, 70, 16)]
    whole = gradients(op, inputs, grad)
    for wanted in ((0,), (1,), (2,), (0, 2)):
        found = gradients(op, inputs, grad, wanted)
        assert all(torch.equal(x, whole[i]) for i, x in zip(wanted, found, strict=True))


class Divided(Variant):
    """The gradient of the row of a query without keys is infinite or no number."""

    def normalize(self, s, row):  # type: ignore[no-untyped-def]
        row.keep("mass", row.sum(sigmoid(s)))
        return sigmoid(s)

    def mask(self, at):  # type: ignore[no-untyped-def]
        return (at.k < 40) & (at.q > 3) & (at.q % 5 != 0)

    def output(self, o, at):  # type: ignore[no-untyped-def]
        return o / at.stats.mass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", [Divided, Window])
def test_rows_without_keys_reach_nothing(variant: type[Variant], dtype: torch.dtype) -> None:
    """Their dq is exactly 0, and whatever their numbers are, dk and dv are as if the rows were ordinary."""
    start = 0 if variant is Divided else 45
    rows = torch.arange(90) + start
    blind = (rows <= 3) | (rows % 5 == 0) if variant is Divided else rows >= 70 + 19
    q, k, v = draw(1, 2, 90, 31, dtype=dtype), *(draw(1, 1, 70, 31, dtype=dtype) for _ in range(2))
    grad = draw(1, 2, 90, 31, dtype=dtype)
    grad[:, :, blind] = 0
    op = attncompiler.compile(variant)
    _, dk, dv = gradients(op, [q, k, v], grad, q_start=start)
    assert bool(dk.isfinite().all())
    for number in (float("nan"), float("inf")):
        q[:, :, blind] = number
        grad[:, :, blind] = number
        found = gradients(op, [q, k, v], grad, q_start=start)
        assert not found[0][:, :, blind].any()
        assert torch.equal(found[1], dk)
        assert torch.equal(found[2], dv)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 4, 1), (2, 4, 2)])
def test_bits_do_not_depend_on_timing(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    """One problem shared out in parts of its rows, and several: tables, dense tensors, keys and values."""
    batch, heads, groups = sizes
    torch.manual_seed(0)
    table, far = draw(9).requires_grad_(), draw(heads, 5).requires_grad_()
    inputs = [draw(batch, h, 400, 32, dtype=dtype) for h in (heads, groups, groups)]
    grad = draw(batch, heads, 400, 32, dtype=dtype)
    op = attncompiler.compile(Table)
    exact = None
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        first = gradients(op, inputs, grad, table=table, far=far)
        for _ in range(4):
            again = gradients(op, inputs, grad, table=table, far=far)
            assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
        exact = first if exact is None else exact
        for x, y in zip(first, exact, strict=True):  # only the order of sums differs
            torch.testing.assert_close(
                x, y, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=2e-3
            )


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory as Linux counts it")
def test_memory_grows_with_the_length() -> None:
    """At 32768 positions one byte a pair would be a gigabyte."""
    op, length = attncompiler.compile(Window), 32768
    inputs = [draw(1, 1, 64, 16) for _ in range(3)]
    gradients(op, inputs, draw(1, 1, 64, 16))  # what loading takes
    inputs = [draw(1, 1, length, 16) for _ in range(3)]
    grad = draw(1, 1, length, 16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gradients(op, inputs, grad, window=1000)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 100 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page through the C library")
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_past_the_end(dtype: str) -> None:
    """Each input ends where a page begins that may not be touched: reading past it would end the process."""
    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    op, kind = attncompiler.compile(Plain), getattr(torch, dtype)
    for rows, keys, dim in ((7, 97, 31), (66, 5, 31), (130, 96, 64), (1, 1, 31)):
        near = [draw(1, 1, n, dim, dtype=kind) for n in (rows, keys, keys, rows)]
        far, pages = [], []
        for x in near:
            room = -(-x.numel() * x.element_size() // page) * page
            memory = mmap.mmap(-1, room + page)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            offset = room - x.numel() * x.element_size()
            guarded = torch.frombuffer(memory, dtype=kind, count=x.numel(), offset=offset)
            far.append(guarded.view(x.shape).copy_(x))
            pages.append(memory)
            assert libc.mprotect(ctypes.c_void_p(start + room), page, 0) == 0
        found = gradients(op, far[:3], far[3])
        assert all(
            torch.equal(x, y) for x, y in zip(found, gradients(op, near[:3], near[3]), strict=True)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_views_at_odd_offsets(dtype: torch.dtype) -> None:
    q, k, v, g = (draw(1, 2, 65, 67, dtype=dtype)[..., 1:65] for _ in range(4))
    op = attncompiler.compile(Plain)
    near = [x.contiguous() for x in (q, k, v)]
    pairs = zip(gradients(op, [q, k, v], g), gradients(op, near, g.contiguous()), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)
