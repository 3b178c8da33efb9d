"""Generated kernels against the float64 oracle on the calls that break kernels, for each instruction set."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from cpp_harness import BUILDS, runs_here
from torch import Tensor

import attncompiler
from attncompiler import oracle
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.dsl import Tensor as Input
from attncompiler.dsl import Variant, bit_length, causal, exp, maximum, sign

DTYPES = ("float32", "bfloat16", "float16", "float64")


class Plain(Variant):
    """No mask: every tile is full."""


class Window(Variant):
    """Partial and empty tiles; rows without keys where queries run past the keys."""

    window: int = 20

    def mask(self, at):  # type: ignore[no-untyped-def]
        return causal(at) & (at.q - at.k < self.window)


class Numbers(Variant):
    """Integers of every width, bools as numbers, negative // and %, shifts by a varying amount."""

    factor: int = 3

    def score(self, s, at):  # type: ignore[no-untyped-def]
        far = at.q - at.k
        s = s + (far // 5 + far % 5 + far // -3 + far % -3) * 0.1 + sign(far) + (at.q == at.k) * 2.0
        s = s + ((far > 0) + (at.k % 3 == 0) * 2) * 0.5 - bit_length(maximum(far, -far)) * 0.5
        return s + maximum(far, 0) * 0.01 + ((1 << (at.k % 40)) & 0x5555555555 != 0) * 1.0

    def mask(self, at):  # type: ignore[no-untyped-def]
        return (at.q * self.factor + at.k * self.factor * self.factor) % 7 != 0


class Documents(Variant):
    """Equal and ordered ids beyond 32 bits."""

    ids = Input("k", dtype="int")
    first = Input("q", dtype="int")

    def mask(self, at):  # type: ignore[no-untyped-def]
        return self.ids[at.k] <= self.first[at.q]


SHAPES = [
    *(("float32", d, d) for d in (1, 16, 31, 72, 96, 128, 192, 256, 512)),
    *((dtype, d, dv) for dtype in DTYPES[1:] for d, dv in ((31, 72), (64, 64))),
    ("float32", 64, 17),
]
LENGTHS = [(1, 257), (5, 63), (63, 5), (127, 129), (129, 1), (257, 127), (0, 5), (5, 0), (300, 97)]
LAYOUTS = ("plain", "swapped", "padded", "broadcast")


def calls(dtype: str, head_dim: int, value_dim: int) -> list[Case]:
    """Nine calls of one kernel that between them vary every length, group, layout and start."""
    made = []
    for i, (queries, keys) in enumerate(LENGTHS):
        group = (8, 1, 3)[i % 3]
        made.append(
            Case(
                B=0 if i == 3 and head_dim == 64 else 1 + i % 2,
                H=2 * group,
                G=2,
                M=queries,
                N=keys,
                D=head_dim,
                Dv=value_dim,
                q_start=(0, max(keys - queries, 0), 3)[i // 3],
                dtype=dtype,
                layout=LAYOUTS[(i + head_dim) % 4],  # type: ignore[arg-type]
                seed=i,
            )
        )
    return made


def assert_right(checker: Checker, cases: list[Case]) -> None:
    for outcome in checker.report(cases).outcomes:
        assert outcome.passed, f"{outcome.case}: {outcome.describe()}"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}-{s[1]}-{s[2]}")
def test_sizes_groups_and_layouts(shape: tuple[str, int, int]) -> None:
    assert_right(Checker(Window()), calls(*shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_tiles(dtype: str) -> None:
    assert_right(Checker(Plain()), calls(dtype, 64, 64))


@pytest.mark.parametrize("build", [b for b in BUILDS if b != "native"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrower_instruction_sets(build: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not runs_here(build):
        pytest.skip(f"this machine has no {build} instructions")
    monkeypatch.setenv("ATTNCOMPILER_CXXFLAGS", BUILDS[build])
    assert_right(Checker(Window()), calls(dtype, 31, 72))


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [3, 2**20, 2**31 + 1, -(2**28) - 1])
def test_integers(factor: int, dtype: torch.dtype) -> None:
    q, k, v = (
        draw(1, 4, 50, 16, dtype=dtype),
        draw(1, 2, 70, 16, dtype=dtype),
        draw(1, 2, 70, 16, dtype=dtype),
    )
    variant = Numbers(factor=factor)
    found = attncompiler.compile(variant)(q, k, v)
    torch.testing.assert_close(
        found.double(), oracle.attention(variant, q, k, v, tensors={}).out, rtol=1e-5, atol=1e-5
    )


EXTREMES = [0, 5, -3, 2**31 - 1, 2**31, -(2**31), 2**62, -(2**62), 2**63 - 1, -(2**63)]


class Either(Variant):
    """Every tile is partial, so that elements are compared with the parameter, whatever it is."""

    window: int = 20

    def mask(self, at):  # type: ignore[no-untyped-def]
        return (at.k % 2 == 0) ^ (at.q - at.k < self.window)


@pytest.mark.parametrize("window", EXTREMES)
@pytest.mark.parametrize("variant", [Window, Either])
def test_windows_beyond_every_position(variant: type[Window] | type[Either], window: int) -> None:
    q, k, v = draw(1, 1, 60, 16), draw(1, 1, 70, 16), draw(1, 1, 70, 16)
    found = attncompiler.compile(variant)(q, k, v, window=window)
    wanted = oracle.attention(variant(window=window), q, k, v, tensors={}).out
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_ids_beyond_32_bits() -> None:
    ids = torch.tensor(
        [0, 1, 2**33 + 1, -(2**40), 5, 2**31, 2**31 - 1, -(2**31) - 1, 2**32]
    ).repeat(8)
    q, k, v = draw(1, 1, 60, 16), draw(1, 1, 70, 16), draw(1, 1, 70, 16)
    tensors = {"ids": ids[:70], "first": ids[:60]}
    found = attncompiler.compile(Documents)(q, k, v, **tensors)
    wanted = oracle.attention(Documents(), q, k, v, tensors=tensors).out
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_views_at_odd_offsets(dtype: torch.dtype) -> None:
    """Rows that start at an odd element: two-byte alignment for the 16-bit types, an odd stride between rows."""
    q, k, v = (draw(1, 2, 65, 67, dtype=dtype)[..., 1:65] for _ in range(3))
    op = attncompiler.compile(Plain)
    assert q.data_ptr() % 4 != 0 or dtype is torch.float32
    assert torch.equal(op(q, k, v), op(q.contiguous(), k.contiguous(), v.contiguous()))


@pytest.mark.parametrize("axis", ["head", "row"])
def test_strides_beyond_32_bits(axis: str) -> None:
    """Two heads more than 2**31 elements apart, and three rows more than 2**31 bytes apart."""
    shape, stride = ((1, 2, 100, 64), 2**31 + 64) if axis == "head" else ((1, 1, 3, 64), 2**30 + 64)
    try:  # pages that nothing touches take no memory
        storage = torch.empty(2**31 + 2**20, dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("this machine does not reserve 4 GiB of address space")
    strides = (0, stride, 64, 1) if axis == "head" else (0, 0, stride, 1)
    far = storage.as_strided(shape, strides)
    near = draw(*shape, dtype=torch.bfloat16)
    far.copy_(near)
    op = attncompiler.compile(Plain)
    assert torch.equal(op(far, far, far), op(near, near, near))


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page through the C library")
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_past_the_end(dtype: str) -> None:
    """Each input ends where a page begins that may not be touched: reading past it would end the process."""
    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    op, kind = attncompiler.compile(Plain), getattr(torch, dtype)
    for keys, dim in ((97, 31), (5, 31), (96, 64), (1, 31)):
        near = [draw(1, 1, n, dim, dtype=kind) for n in (7, keys, keys)]
        far, pages = [], []
        for x in near:
            size = x.numel() * x.element_size()
            room = -(-size // page) * page
            memory = mmap.mmap(-1, room + page)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            guarded = torch.frombuffer(
                memory, dtype=kind, count=x.numel(), offset=room - size
            ).view(x.shape)
            guarded.copy_(x)
            assert libc.mprotect(ctypes.c_void_p(start + room), page, 0) == 0
            far.append(guarded)
            pages.append(memory)
        assert torch.equal(op(*far), op(*near))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_runs_or_threads(dtype: str) -> None:
    kind = getattr(torch, dtype)
    q, k, v = (
        draw(2, 6, 500, 64, dtype=kind),
        draw(2, 2, 700, 64, dtype=kind),
        draw(2, 2, 700, 64, dtype=kind),
    )
    op = attncompiler.compile(Window)
    results = []
    for count in (1, 2, 3, 7, 2):
        torch.set_num_threads(count)
        results.append(op(q, k, v, window=300, q_start=150, return_stats=True))
    for out, stats in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(stats["lse"], results[0][1]["lse"])


def test_calls_from_several_python_threads() -> None:
    op = attncompiler.compile(Window)
    inputs = [tuple(draw(1, 2, 100 + 30 * i, 64) for _ in range(3)) for i in range(4)]
    wanted = [op(*x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(op(*inputs[i]), wanted[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


class Kept(Variant):
    """Softmax with its sum as a second output."""

    def normalize(self, s, row):  # type: ignore[no-untyped-def]
        e = exp(s - row.max(s))
        row.keep("total", row.sum(e))
        return e / row.sum(e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", [0, 40, 129])
def test_bad_numbers_in_keys_show(bad: float, key: int, dtype: torch.dtype) -> None:
    """A NaN or infinity in a key reaches exactly the rows it reaches in the oracle, sums included.

    (A running maximum or minimum may pass over a NaN; whatever is made of the scores themselves shows it.)
    """
    q, k, v = (draw(1, 1, 130, 16, dtype=dtype) for _ in range(3))
    k[0, 0, key, 3] = bad
    q[0, 0, 5] = 0
    q[0, 0, 5, 3] = 1  # one row whose score is exactly the bad number
    wanted = oracle.attention(Kept(), q, k, v, tensors={})
    out, stats = attncompiler.compile(Kept)(q, k, v, return_stats=True)
    assert torch.equal(out.isnan(), wanted.out.isnan())
    for name, stat in wanted.stats.items():
        assert torch.equal(stats[name].isnan(), stat.isnan()), name


def test_a_bad_query_stays_in_its_row() -> None:
    q, k, v = draw(1, 1, 130, 16), draw(1, 1, 130, 16), draw(1, 1, 130, 16)
    clean = attncompiler.compile(Window)(q, k, v)
    q[0, 0, 7] = math.nan
    found = attncompiler.compile(Window)(q, k, v)
    assert found[0, 0, 7].isnan().all()
    others = torch.arange(130) != 7
    assert torch.equal(found[:, :, others], clean[:, :, others])


def test_padding_of_the_last_tile_is_never_read_into_results() -> None:
    """Keys and values beyond N, beyond a window, and before a row are NaN in memory; no result shows it."""
    room = torch.full((1, 1, 300, 64), math.nan)
    for dtype in DTYPES:
        whole = room.to(getattr(torch, dtype))
        k, v = whole.clone()[:, :, 100:195], whole.clone()[:, :, 100:195]
        k.copy_(draw(1, 1, 95, 64)), v.copy_(draw(1, 1, 95, 64))
        q = draw(1, 1, 95, 64, dtype=k.dtype)
        assert attncompiler.compile(Window)(q, k, v).isfinite().all()


def test_huge_scores_do_not_overflow() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        q, k, v = (draw(1, 2, 70, 64, dtype=dtype) for _ in range(3))
        found = attncompiler.compile(Plain)(q * 100, k * 100, v)
        wanted = oracle.attention(Plain(), q * 100, k * 100, v, tensors={}).out
        assert found.isfinite().all()
        assert (found.double() - wanted).abs().max() < 0.05


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_round_to_nearest_even(
    build: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two keys of equal weight: the mean of neighbouring numbers is a tie, and so are means of far ones."""
    if not runs_here(build):
        pytest.skip(f"this machine has no {build} instructions")
    monkeypatch.setenv("ATTNCOMPILER_CXXFLAGS", BUILDS[build])
    values = torch.arange(2**15 - 1, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[values.isfinite()]
    pairs = torch.stack((values[:-1], values[1:]))
    pairs = pairs[:, : pairs.shape[1] // 128 * 128].reshape(2, -1, 128).movedim(0, 1)[None]
    signs = torch.tensor([1.0, -1.0]).repeat(64).to(dtype)
    pairs = pairs * signs
    q = torch.zeros(1, pairs.shape[1], 1, 64, dtype=dtype)
    k = torch.zeros(1, pairs.shape[1], 2, 64, dtype=dtype)
    found = attncompiler.compile(Plain)(q, k, pairs)
    wanted = (pairs.double().sum(2, keepdim=True) / 2).to(dtype)
    tiny = (
        wanted.abs() < 2 * torch.finfo(dtype).tiny
    )  # pairs of bfloat16 multiply without denormals
    assert torch.equal(found[~tiny], wanted[~tiny])
