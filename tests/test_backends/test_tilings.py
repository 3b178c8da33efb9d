"""Which tile shapes a device gets; those that it refuses or that spill are passed over, once and for good."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attncompiler.backends.gpu_targets import target_of
from attncompiler.backends.triton_configs import Kind, configs
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant
from attncompiler.runtime import triton_engine
from attncompiler.runtime.errors import OldGpuError
from attncompiler.runtime.gpu_kernels import gpu_kernels
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.tilings import (
    RefusedError,
    Tilings,
    Trial,
    UnfitError,
    choices_of,
    describable,
    first_accepted,
    for_pointers,
    target_for,
    tilings_for,
)
from attncompiler.runtime.triton_engine import TritonEngine
from attncompiler.runtime.triton_launch import Tiling, block_options
from attncompiler.runtime.triton_sources import TritonSources

pytest.importorskip("triton")

LARGE, MIDDLE, SMALL = Tiling(128, 128, 8, 3), Tiling(64, 64, 4, 2), Tiling(16, 16, 4, 1)


class Plain(Variant):
    pass


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_100", "gfx942", "gfx950"])
def test_a_known_architecture_has_its_own_shapes(name: str) -> None:
    choice = target_for(name)
    assert (choice.target.name, choice.reason) == (name, "")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sm_87", "sm_86"), ("sm_103", "sm_100"), ("sm_121", "sm_120"), ("sm_150", "sm_120"),
        ("gfx941", "gfx90a"), ("gfx951", "gfx950"), ("gfx1100", "gfx90a"),
    ],
)  # fmt: skip
def test_an_unknown_architecture_gets_those_of_an_older_one(name: str, nearest: str) -> None:
    choice = target_for(name)
    assert choice.target.name == nearest
    assert name in choice.reason
    assert nearest in choice.reason


@pytest.mark.parametrize(("name", "oldest"), [("sm_75", "sm_80"), ("gfx908", "gfx90a")])
def test_what_is_older_than_all_is_told_what_it_lacks(name: str, oldest: str) -> None:
    with pytest.raises(OldGpuError, match=f"{name} is older than {oldest}.*matrix products") as e:
        target_for(name)
    assert 'backend="cpp"' in e.value.remedy


def test_the_lists_are_those_of_the_target() -> None:
    q = k = v = meta(1, 4, 4096, 64)
    for name in ("sm_80", "sm_90", "gfx942"):
        for kind in ("forward", "rows", "columns"):
            expected = configs(kind, target_of(name), "bfloat16", 64, 64)
            found = tilings_for(expected, q, k, v).options
            assert [(t.block_m, t.block_n, t.num_warps, t.num_stages) for t in found] == [
                (c.block_m, c.block_n, c.num_warps, c.num_stages) for c in expected
            ]
    listed = configs("forward", target_of("sm_90"), "bfloat16", 64, 64)
    assert tilings_for(listed, q, k, v).current.descriptors


@pytest.mark.parametrize(("queries", "block"), [(1, 16), (16, 16), (17, 32), (100, 128)])
def test_few_queries_get_few_rows(queries: int, block: int) -> None:
    q, k = meta(1, 4, queries, 128), meta(1, 4, 8192, 128)
    found = tilings_for(configs("forward", target_of("sm_90"), "bfloat16", 128, 128), q, k, k)
    assert found.current.block_m == block
    assert len(set(found.options)) == len(found.options)
    if block < 128:
        assert all(t.num_warps <= 4 for t in found.options if t.block_m == block)


@pytest.mark.parametrize(
    ("cuda", "hip", "tells"), [(True, None, True), (True, "6.4", False), (False, None, False)]
)
def test_only_nvidias_assembler_is_told_of_registers(
    cuda: bool, hip: str | None, tells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that once it spilled: an SM holds fewer blocks that use them all, and some spill only when told."""
    monkeypatch.setattr(torch.version, "hip", hip)
    tensor: Any = SimpleNamespace(is_cuda=cuda)
    options = choices_of([LARGE, SMALL], tensor)
    assert block_options(options.current) == {"num_warps": 8, "num_stages": 3}
    told = replace(LARGE, told=True)
    assert attempts(options, {LARGE: 8, told: 0, SMALL: 0}) == [LARGE, told if tells else SMALL]
    assert block_options(told) == {"num_warps": 8, "num_stages": 3, "maxnreg": 255}


def test_a_choice_that_spills_when_told_as_well_is_passed_over() -> None:
    told = replace(LARGE, told=True)
    options = Tilings([LARGE, SMALL], tells=True)
    assert attempts(options, {LARGE: 8, told: 40, SMALL: 0}) == [LARGE, told, SMALL]
    assert attempts(options, {SMALL: 0}) == [SMALL]
    options = Tilings([LARGE], tells=True)
    assert attempts(options, {LARGE: 8, told: 40}) == [LARGE, told, LARGE]
    assert attempts(options, {LARGE: 8}) == [LARGE]
    # What a smaller one spills decides between the two as between any.
    small = replace(SMALL, told=True)
    options = Tilings([LARGE, SMALL], tells=True)
    spills: dict[Tiling, int | None] = {LARGE: 12, told: 8, SMALL: None}
    assert attempts(options, spills | {small: None})[-1] == told


def test_offline_kernels_are_compiled_as_a_launch_would() -> None:
    sources = gpu_kernels(Kernels(compile_variant(Variant).compilation), {}, ("bfloat16", 64, 64))
    (forward,) = sources.kernels
    for name, expected in (("sm_80", 255), ("gfx942", 0)):
        target = target_of(name)
        assert forward.request(target, forward.configs(target)[0]).registers == expected


def test_descriptors_want_aligned_rows() -> None:
    whole = meta(1, 2, 64, 64)
    assert describable(whole)
    assert not describable(meta(1, 2, 64, 65)[..., :64])
    assert not describable(whole.transpose(2, 3))
    assert not describable(meta(1, 2, 0, 64))
    assert not describable(whole[:, :, :1].expand(1, 2, 64, 64))
    tiling = Tiling(64, 64, 4, 2, descriptors=True)
    memory = torch.empty(65, dtype=torch.bfloat16)
    assert for_pointers(tiling, memory) == tiling
    assert not for_pointers(tiling, memory[1:]).descriptors


def test_only_the_refused_kernel_moves_on() -> None:
    rows, columns = Tilings([LARGE, SMALL]), Tilings([LARGE, MIDDLE, SMALL])
    tried = []

    def launch(now: Any, trial: Trial) -> str:
        tried.append(tuple(now))
        if now[1] != SMALL:
            raise RefusedError("columns")
        return "done"

    choices: list[tuple[Kind, Tilings]] = [("rows", rows), ("columns", columns)]
    assert first_accepted(choices, launch) == "done"
    assert tried == [(LARGE, LARGE), (LARGE, MIDDLE), (LARGE, SMALL)]
    assert (rows.current, columns.current) == (LARGE, SMALL)


def attempts(options: Tilings, spills: dict[Tiling, int | None]) -> list[Tiling]:
    """What is launched in a call of one kernel; ``spills`` are bytes, None for what cannot run."""
    launched = []

    def launch(now: Any, trial: Trial) -> None:
        launched.append(now[0])
        spilled = spills[now[0]]
        if spilled is None:
            raise RefusedError("forward")
        trial.spilled["forward"] = spilled

    first_accepted([("forward", options)], launch)
    return launched


def test_the_first_choice_that_does_not_spill_stays() -> None:
    options = Tilings([LARGE, MIDDLE, SMALL])
    spills: dict[Tiling, int | None] = {LARGE: 8, MIDDLE: 0, SMALL: 0}
    assert attempts(options, spills) == [LARGE, MIDDLE]
    assert attempts(options, spills) == [MIDDLE]


@pytest.mark.parametrize(
    ("bytes_", "best"), [((8, 12, 40), LARGE), ((40, 8, 8), MIDDLE), ((None, 40, 8), SMALL), ((8, 9, None), LARGE)]
)  # fmt: skip
def test_where_all_spill_the_fewest_bytes_stay(
    bytes_: tuple[int | None, ...], best: Tiling
) -> None:
    options = Tilings([LARGE, MIDDLE, SMALL])
    spills = dict(zip((LARGE, MIDDLE, SMALL), bytes_, strict=True))
    assert attempts(options, spills)[:3] == [LARGE, MIDDLE, SMALL]
    assert options.current == best
    assert attempts(options, spills) == [best]


def test_a_thread_that_comes_late_takes_what_others_found() -> None:
    options = Tilings([LARGE, MIDDLE, SMALL])
    assert not options.keeps(LARGE, 8)
    assert not options.keeps(LARGE, 8)
    assert options.current == MIDDLE
    assert options.refuse(MIDDLE)
    assert options.refuse(MIDDLE)
    assert options.current == SMALL
    assert options.keeps(SMALL, 0)


def test_both_kernels_that_spill_move_on_at_once() -> None:
    rows, columns = Tilings([LARGE, SMALL]), Tilings([LARGE, MIDDLE])
    tried = []

    def launch(now: Any, trial: Trial) -> str:
        tried.append(tuple(now))
        trial.spilled = {"rows": 4, "columns": 4} if LARGE in now else {}
        return "done"

    choices: list[tuple[Kind, Tilings]] = [("rows", rows), ("columns", columns)]
    assert first_accepted(choices, launch) == "done"
    assert tried == [(LARGE, LARGE), (SMALL, MIDDLE)]


class Launched:
    """What Triton gives back of a launch: a kernel that is on the device, whose spills are counted in registers."""

    def __init__(self, n_spills: int) -> None:
        self.n_spills = n_spills


def test_a_trial_notes_the_most_that_a_kernel_spilled() -> None:
    trial = Trial()
    for registers in (2, 5, 0):
        trial.run("rows", lambda count: Launched(count), count=registers)
    trial.run("columns", lambda: None)  # in the interpreter nothing is compiled
    assert trial.spilled == {"rows": 20, "columns": 0}


class FakeKernel:
    """Raises as Triton does where a tile has more than ``most`` queries; notes what was launched.

    ``spills`` are the registers that a tile of so many queries spills.
    """

    def __init__(
        self,
        most: int,
        launched: list[tuple[int, int]],
        fills: str = "",
        spills: dict[int, int] | None = None,
    ) -> None:
        self.most, self.launched, self.fills = most, launched, fills
        self.spills = spills or {}

    def __getitem__(self, grid: tuple[int, ...]) -> FakeKernel:
        return self

    def __call__(self, **arguments: Any) -> Launched:
        from triton.runtime.errors import OutOfResources

        self.launched.append((arguments["BLOCK_M"], arguments["num_stages"]))
        if arguments["BLOCK_M"] > self.most:
            raise OutOfResources(300000, 232448, "shared memory")
        if self.fills:
            arguments[self.fills].add_(1)
        return Launched(self.spills.get(arguments["BLOCK_M"], 0))


class FakeModule:
    REVERSED = False

    def __init__(self, **kernels: FakeKernel) -> None:
        self.__dict__.update(kernels)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TritonEngine:
    monkeypatch.setattr(triton_engine, "tilings", lambda *_, **__: Tilings([LARGE, MIDDLE, SMALL]))
    kernels = Kernels(compile_variant(Plain).compilation)
    return TritonEngine(kernels, TritonSources(kernels))


def test_a_refused_forward_is_remembered(
    engine: TritonEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tuple[int, int]] = []
    module = FakeModule(forward=FakeKernel(64, launched))
    monkeypatch.setattr(engine.sources, "forward", lambda *_: module)
    q = torch.randn(1, 2, 200, 32)
    for _ in range(2):
        engine.forward(q, q, q, (), 0, 1.0, ())
    assert launched == [(128, 3), (64, 2), (64, 2)]
    longer = torch.randn(1, 2, 300, 32)
    engine.forward(longer, q, q, (), 0, 1.0, ())
    assert launched[3:] == [(128, 3), (64, 2)]


def test_a_forward_that_spills_is_passed_over(
    engine: TritonEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tuple[int, int]] = []
    module = FakeModule(forward=FakeKernel(128, launched, spills={128: 3}))
    monkeypatch.setattr(engine.sources, "forward", lambda *_: module)
    q = torch.randn(1, 2, 200, 32)
    for _ in range(2):
        engine.forward(q, q, q, (), 0, 1.0, ())
    assert launched == [(128, 3), (64, 2), (64, 2)]


def test_a_forward_of_which_all_spill_runs_with_the_fewest(
    engine: TritonEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tuple[int, int]] = []
    module = FakeModule(forward=FakeKernel(64, launched, spills={64: 3, 16: 9}))
    monkeypatch.setattr(engine.sources, "forward", lambda *_: module)
    q = torch.randn(1, 2, 200, 32)
    for _ in range(2):
        engine.forward(q, q, q, (), 0, 1.0, ())
    assert launched == [(128, 3), (64, 2), (16, 1), (64, 2), (64, 2)]


def test_the_last_refusal_is_tritons_own_error(
    engine: TritonEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.errors import OutOfResources

    launched: list[tuple[int, int]] = []
    module = FakeModule(forward=FakeKernel(0, launched))
    monkeypatch.setattr(engine.sources, "forward", lambda *_: module)
    q = torch.randn(1, 2, 200, 32)
    with pytest.raises(OutOfResources, match="shared memory"):
        engine.forward(q, q, q, (), 0, 1.0, ())
    assert launched == [(128, 3), (64, 2), (16, 1)]


def test_a_refused_backward_starts_again_with_memory_of_its_own(
    engine: TritonEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, int]] = []
    columns: list[tuple[int, int]] = []
    module = FakeModule(
        rows=FakeKernel(128, rows, "dq_pointer"),
        columns=FakeKernel(64, columns, "dv_pointer", spills={64: 1}),
    )
    signature, _ = engine.sources.backward(("float32", 32, 32), {}, frozenset())
    monkeypatch.setattr(engine.sources, "backward", lambda *_: (signature, module))
    q = torch.randn(1, 2, 200, 32)
    saved = {name: torch.zeros(1, 2, 200) for name in engine.kernels.saved}
    for _ in range(2):
        found = engine.backward(
            (q, q, q), q, {}, {}, q_start=0, scale=1.0, params={}, saved=saved, value=q,
            wants=(True, True, True), wanted=frozenset(),
        )  # fmt: skip
        assert found.q is not None
        assert found.v is not None
        assert found.q.eq(1).all()
        assert found.v.eq(1).all()
    assert rows == [(128, 3)] * 4
    assert columns == [(128, 3), (64, 2), (16, 1), (16, 1)]


def test_shapes_of_kernels_whose_warps_have_rows_of_their_own_do_not_shrink() -> None:
    q, kv = meta(1, 2, 1, 64), meta(1, 2, 500, 64)
    found = configs("forward", target_of("sm_90"), "bfloat16", 64, 64)
    few = tilings_for(found, q, kv, kv)
    own = tilings_for(found, q, kv, kv, shrinks=False)
    assert {t.block_m for t in few.options} == {16}
    assert [t.block_m for t in own.options] == [c.block_m for c in found]


def test_what_a_compiler_does_not_take_gives_way() -> None:
    options, launched = Tilings([LARGE, SMALL]), []

    def kernel(**arguments: Any) -> None:
        launched.append(arguments["tiling"])
        if arguments["tiling"] == LARGE:
            raise UnfitError from MemoryError("too much")

    def launch(tried: Any, trial: Trial) -> str:
        trial.run("forward", kernel, tiling=tried[0])
        return "done"

    assert first_accepted([("forward", options)], launch) == "done"
    assert launched == [LARGE, SMALL]
    with pytest.raises(MemoryError, match="too much"):
        first_accepted([("forward", Tilings([LARGE]))], launch)
