"""Kernels compile for GPUs that are not here, and every way in which that goes wrong is an answer with a reason."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from pathlib import Path

import pytest

from attncompiler.backends.gpu_targets import Target, target_of
from attncompiler.runtime import offline
from attncompiler.runtime.errors import CacheError
from attncompiler.runtime.gpu_binary import amd_resources, nvidia_resources
from attncompiler.runtime.offline import Built, Failed, KernelRequest, compile_offline
from attncompiler.tuning.occupancy import problems

pytest.importorskip("triton")

SMALL = Path(__file__).parents[1] / "triton_kernels" / "small.py"
DOUBLE = KernelRequest(
    SMALL, "double", {"x": "*fp32", "y": "*fp32", "n": "i32"}, {"block": 256}, frozenset("xy")
)
BROKEN = KernelRequest(SMALL, "mismatched", {"x": "*fp32", "y": "*fp32"}, {})


def only(request: KernelRequest, arch: str, **options: float) -> Built | Failed:
    (result,) = compile_offline([request], target_of(arch), **options)  # type: ignore[arg-type]
    return result


def built(request: KernelRequest, arch: str) -> Built:
    result = only(request, arch)
    assert isinstance(result, Built), result
    return result


def failed(request: KernelRequest, **options: float) -> Failed:
    result = only(request, "sm_90", **options)
    assert isinstance(result, Failed)
    return result


def source(folder: Path, text: str) -> KernelRequest:
    """A file that runs ``text`` when the worker imports it."""
    path = folder / "kernel.py"
    path.write_text(text)
    return KernelRequest(path, "kernel", {}, {})


@pytest.mark.parametrize(("arch", "magic"), [("sm_90", ".cubin"), ("gfx942", ".hsaco")])
def test_a_binary_for_a_gpu_that_is_not_here(
    arch: str, magic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    result = built(DOUBLE, arch)
    assert result.binary.suffix == magic
    assert result.binary.read_bytes().startswith(b"\x7fELF")
    assert result.text.stat().st_size
    assert 0 < result.registers < 64
    assert (result.spill_stores, result.spill_loads, result.shared) == (0, 0, 0)
    assert result.num_warps == 4
    assert problems(result, result.target) == ()


def test_the_assembler_is_told_of_registers_only_where_it_spills(tmp_path: Path) -> None:
    request = dataclasses.replace(DOUBLE, registers=96)
    (found,) = compile_offline([request], target_of("sm_90"), folder=tmp_path)
    assert isinstance(found, Built)
    assert ".maxnreg" not in found.text.read_text()
    assert found.request == request


@pytest.mark.parametrize(
    ("told", "best"), [(40, "untold"), (8, "untold"), (4, "told"), (0, "told")]
)
def test_of_two_kernels_that_spill_the_better_one_stays(
    told: int, best: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spills = {0: 8, 255: told}
    asked = []

    def answer(request: KernelRequest, target: Target, *_: object) -> Built:
        asked.append(request.registers)
        (found,) = [f for f in made if f.request.registers == request.registers]
        return found

    (small,) = compile_offline([DOUBLE], target_of("sm_90"), folder=tmp_path)
    assert isinstance(small, Built)
    made = [
        dataclasses.replace(
            small,
            request=dataclasses.replace(DOUBLE, registers=n),
            registers=128,
            spill_stores=spilled,
        )
        for n, spilled in spills.items()
    ]
    monkeypatch.setattr(offline, "_compile", answer)
    request = dataclasses.replace(DOUBLE, registers=255)
    (found,) = compile_offline([request], target_of("sm_90"))
    assert isinstance(found, Built)
    assert asked == [0, 255]
    assert found.request == request
    assert found.spill_stores == (told if best == "told" else 8)
    # With all registers in use there is nothing to tell.
    made[0] = dataclasses.replace(made[0], registers=255)
    compile_offline([request], target_of("sm_90"))
    assert asked == [0, 255, 0]


def test_the_second_time_it_comes_from_the_cache(tmp_path: Path) -> None:
    (first,) = compile_offline([DOUBLE], target_of("sm_80"), folder=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)  # no compiler is started
        (second,) = compile_offline([DOUBLE], target_of("sm_80"), folder=tmp_path)
    assert isinstance(first, Built)
    assert isinstance(second, Built)
    assert not first.cached
    assert second == dataclasses.replace(first, cached=True)
    assert first.binary.is_relative_to(tmp_path)
    # Another configuration is another entry.
    (other,) = compile_offline(
        [dataclasses.replace(DOUBLE, num_warps=8)], target_of("sm_80"), folder=tmp_path
    )
    assert isinstance(other, Built)
    assert not other.cached
    assert other.num_warps == 8


def test_spills_are_read_and_are_a_reason_to_drop() -> None:
    request = KernelRequest(
        SMALL, "spilling", {"x": "*fp32", "y": "*fp32"}, {"block": 8192}, frozenset("xy"), 1
    )
    result = built(request, "sm_80")
    assert result.spill_stores > 0
    assert result.spill_loads > 0
    assert "spills" in problems(result, result.target)[0]


def test_too_much_shared_memory_is_a_reason_to_drop() -> None:
    request = KernelRequest(
        SMALL, "product", {"a": "*bf16", "b": "*bf16", "c": "*fp32"}, {"size": 128}, frozenset("abc"), 8, 3,
    )  # fmt: skip
    result = built(request, "sm_80")
    assert result.shared > 96 * 1024
    assert result.instructions["mma"] > 0
    assert problems(result, target_of("sm_80")) == ()
    assert "shared memory" in problems(result, target_of("sm_86"))[0]


def test_a_kernel_that_does_not_compile_says_why() -> None:
    reason = failed(BROKEN).reason
    assert reason.startswith("ValueError: ")
    assert "16 and 32" in reason.splitlines()[0]
    assert "tl.store(y + tl.arange(0, 16)" in reason


def test_the_reason_is_that_of_the_innermost_call() -> None:
    assert failed(dataclasses.replace(BROKEN, kernel="outer")).reason == failed(BROKEN).reason


def test_names_that_do_not_fit_the_kernel() -> None:
    request = dataclasses.replace(DOUBLE, signature={"x": "*fp32", "z": "i32"})
    reason = failed(request).reason
    assert "unknown: ['z']" in reason
    assert "without a type: ['n', 'y']" in reason
    assert "no_such" in failed(dataclasses.replace(DOUBLE, kernel="no_such")).reason


def test_a_compiler_that_hangs_is_stopped(tmp_path: Path) -> None:
    begin = time.perf_counter()
    result = failed(source(tmp_path, "import time\ntime.sleep(60)\n"), timeout_s=1.5)
    assert result.reason == "the compiler gave no answer in 1.5 s"
    assert time.perf_counter() - begin < 10


def test_a_compiler_that_aborts_leaves_the_others_alone(tmp_path: Path) -> None:
    crash = source(
        tmp_path, "import os, sys\nprint('assertion failed', file=sys.stderr)\nos.abort()\n"
    )
    results = compile_offline([crash, DOUBLE, BROKEN], target_of("sm_90"))
    assert [type(r) for r in results] == [Failed, Built, Failed]
    assert isinstance(results[0], Failed)
    assert results[0].reason == "the compiler ended with SIGABRT\nassertion failed"
    assert [r.request for r in results] == [crash, DOUBLE, BROKEN]


def test_what_a_source_prints_does_not_disturb(tmp_path: Path) -> None:
    reason = failed(source(tmp_path, "print('hello')\nraise RuntimeError('stop here')\n")).reason
    assert reason.startswith("RuntimeError: stop here")


def test_a_folder_that_cannot_be_written() -> None:
    with pytest.raises(CacheError):
        compile_offline([DOUBLE], target_of("sm_90"), folder=SMALL / "below")


def test_nothing_to_do() -> None:
    assert compile_offline([], target_of("sm_90")) == []


def test_reading_the_log_of_ptxas() -> None:
    log = """\
ptxas info    : Function properties for forward
    168 bytes stack frame, 164 bytes spill stores, 244 bytes spill loads
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to a call
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to a call
ptxas info    : (C7519) Potential Performance Loss: wgmma.wait_group is injected in around line 9 by compiler
ptxas info    : Used 255 registers, used 1 barriers, 168 bytes cumulative stack size, 344 bytes smem
"""
    ptx = """\
wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1]
cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1]
"""
    found = nvidia_resources(ptx, log, 1024, 0)
    assert (found.registers, found.stack, found.shared) == (255, 168, 1368)
    assert (found.spill_stores, found.spill_loads) == (164, 244)
    assert found.instructions == {"wgmma": 1, "mma": 1, "tma_load": 1}
    assert len(found.warnings) == 1  # that of a wait that was added is none
    assert "serialized due to a call" in found.warnings[0]
    with pytest.raises(ValueError, match="names no registers"):
        nvidia_resources(ptx, "", 0, 0)


def test_reading_the_table_of_amdgcn() -> None:
    text = """\
  v_mfma_f32_32x32x8_bf16_1k v[0:15], v[16:17], v[18:19], v[0:15]
  v_exp_f32_e32 v1, v1
    .agpr_count:     64
    .group_segment_fixed_size: 0
    .private_segment_fixed_size: 184
    .sgpr_spill_count: 9
    .vgpr_count:     320
    .vgpr_spill_count: 46
"""
    found = amd_resources(text, 98304)
    assert (found.registers, found.stack, found.shared) == (320, 184, 98304)
    assert (found.spill_stores, found.spill_loads) == (184, 184)
    assert found.instructions == {"mfma": 1, "exp2": 1}
    with pytest.raises(ValueError, match="no table"):
        amd_resources("", 0)
