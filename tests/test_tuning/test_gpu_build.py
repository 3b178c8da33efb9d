"""Choosing among compiled configurations: what is dropped, what is about as fast, what is said when none is left."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from attncompiler.backends.gpu_targets import Target, target_of
from attncompiler.backends.triton_configs import Config
from attncompiler.backends.triton_work import SOFTMAX, Extra
from attncompiler.runtime.errors import NoConfigurationError
from attncompiler.runtime.gpu_kernels import GpuKernel, GpuKernels, PlanKernel
from attncompiler.runtime.offline import Built, Failed, KernelRequest, Lowered
from attncompiler.runtime.triton_requests import Call
from attncompiler.tuning import gpu_build

CALL = Call("bfloat16", 64, 64, {}, {}, listed=True)
REQUEST = KernelRequest(Path("k.py"), "forward", {"q_pointer": "*bf16"}, {})
CLEAN = Built(
    REQUEST, target_of("sm_90"), Path("k.cubin"), Path("k.ptx"), 168, 0, 0, 0, 65536, 0, 8, (), {}, 2.0, False,
)  # fmt: skip
SOURCE = """
def forward(q_pointer, B, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr): pass
def columns(q_pointer, B, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr): pass
def plan(tile_lists, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TRANSPOSED: tl.constexpr): pass
"""
WIDE, TALL, TINY = Config(128, 128, 8, 2), Config(128, 64, 8, 2), Config(64, 32, 4, 2)


def kernel(folder: Path, kind: str = "forward") -> GpuKernel:
    path = folder / "kernel.py"
    path.write_text(SOURCE)
    return GpuKernel(kind, path, CALL, SOFTMAX["forward"], Extra())  # type: ignore[arg-type]


def test_the_first_about_as_fast_as_any_is_chosen(tmp_path: Path) -> None:
    slow = dataclasses.replace(CLEAN, registers=255, num_warps=4)
    rows = gpu_build.choose([(TINY, slow), (WIDE, CLEAN), (TALL, CLEAN)], kernel(tmp_path))
    times = [row.prediction.seconds for row in rows if row.prediction]
    assert times[0] > 1.05 * times[1]
    assert [row.chosen for row in rows] == [False, True, False]


def test_spills_and_failures_are_dropped(tmp_path: Path) -> None:
    spilled = dataclasses.replace(CLEAN, spill_stores=8)
    failed = Failed(REQUEST, target_of("sm_90"), "no")
    large = dataclasses.replace(CLEAN, shared=300000)
    serial = dataclasses.replace(CLEAN, warnings=("(C7510) serialized",))
    found = [(WIDE, spilled), (WIDE, failed), (WIDE, large), (WIDE, serial), (TINY, CLEAN)]
    rows = gpu_build.choose(found, kernel(tmp_path))
    assert [row.chosen for row in rows] == [False, False, False, False, True]
    assert [bool(row.problems) for row in rows] == [True, True, True, True, False]
    assert not any(row.chosen for row in gpu_build.choose(found[:4], kernel(tmp_path)))


def test_of_lowered_sources_the_first_that_fits_is_chosen(tmp_path: Path) -> None:
    large = Lowered(REQUEST, target_of("gfx942"), Path("k.hip"), 70000, 8, "why", 3.0, False)
    fits = dataclasses.replace(large, shared=60000)
    found = gpu_build.choose([(WIDE, large), (TALL, fits), (TINY, fits)], kernel(tmp_path))
    assert [row.chosen for row in found] == [False, True, False]
    assert found[1].prediction is None


def test_when_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spilled = dataclasses.replace(CLEAN, spill_stores=8, spill_loads=12)
    monkeypatch.setattr(gpu_build, "compile_all", lambda requests, **_: [spilled for _ in requests])
    with pytest.raises(NoConfigurationError) as raised:
        gpu_build.build_gpu([GpuKernels((kernel(tmp_path),), None)], [target_of("sm_90")])
    assert "forward kernel is left for bfloat16 on sm_90" in str(raised.value)
    assert "128x128: spills (8 B stored, 12 B loaded a thread)" in str(raised.value)
    assert "leave sm_90 out" in raised.value.remedy
    assert "--backend" not in raised.value.remedy
    other = gpu_build._none_left("tilelang rows", target_of("gfx942"), "float16", ["16x16: large"])
    assert "try --backend triton, --dtype bfloat16" in other.remedy


def test_planning_kernels_have_the_tiles_of_those_that_were_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[KernelRequest, Target]] = []
    heard: list[tuple[int, int]] = []

    def compile_all(
        requests: list[tuple[KernelRequest, Target]], *, jobs: int, each: object
    ) -> list[Built]:
        asked.extend(requests)
        for _ in requests:
            each(CLEAN)  # type: ignore[operator]
        return [dataclasses.replace(CLEAN, request=r, target=t) for r, t in requests]

    monkeypatch.setattr(gpu_build, "compile_all", compile_all)
    forward = kernel(tmp_path)
    columns = kernel(tmp_path, "columns")
    group = GpuKernels((forward, columns), PlanKernel(forward.source, CALL))
    targets = [target_of("sm_90"), target_of("gfx942")]
    built = gpu_build.build_gpu([group], targets, progress=lambda *n: heard.append(n))
    assert heard[0][0] == 0
    assert heard[-1][0] == heard[-1][1]
    by_kind = [(b.kind, b.target.name, b.transposed) for b in built.binaries]
    assert by_kind[:4] == [
        ("forward", "sm_90", False), ("columns", "sm_90", False), ("forward", "gfx942", False),
        ("columns", "gfx942", False),
    ]  # fmt: skip
    assert sorted(by_kind[4:]) == [
        ("plan", "gfx942", False), ("plan", "gfx942", True), ("plan", "sm_90", False), ("plan", "sm_90", True),
    ]  # fmt: skip
    chosen = {(b.target.name, b.kind == "columns"): b.config for b in built.binaries[:4]}
    for plan in built.plans:
        owner = chosen[plan.target.name, plan.transposed]
        constants = plan.built.request.constexprs
        assert (constants["BLOCK_M"], constants["BLOCK_N"]) == (owner.block_m, owner.block_n)
        assert constants["TRANSPOSED"] == plan.transposed
    assert built.seconds > 0
