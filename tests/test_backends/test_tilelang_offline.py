"""TileLang's kernels are lowered and compiled for GPUs that are not here; where nvcc is missing, the source is kept."""

from __future__ import annotations

import dataclasses
import subprocess
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
from generated import kernel_of

from attncompiler.backends.gpu_targets import Target, target_of
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.runtime.errors import MissingTilelangError
from attncompiler.runtime.offline import Built, Failed, KernelRequest, Lowered, compile_offline
from attncompiler.runtime.tilelang_offline import find_nvcc, tilelang_arch
from attncompiler.tuning.occupancy import problems

# Importing it would change `inspect` for other tests.
if find_spec("tilelang") is None:
    pytest.skip("TileLang is not installed here", allow_module_level=True)

KINDS: tuple[Kind, ...] = ("forward", "rows", "columns")
HOPPER = target_of("sm_90")
needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed")


def request(
    kind: Kind,
    target: Target,
    dim: int = 64,
    value_dim: int = 0,
    *,
    name: str = "causal",
    which: int = 0,
) -> KernelRequest:
    """A configuration of a kernel, the best guess first."""
    kernel = kernel_of(name, kind, "bfloat16", dim, value_dim or dim, "tilelang")
    return kernel.request(target, kernel.configs(target)[which])


def answer(asked: KernelRequest, target: Target) -> Built | Lowered | Failed:
    (result,) = compile_offline([asked], target, timeout_s=400)
    return result


def clean(kind: Kind, arch: str, dim: int, value_dim: int = 0, *, which: int = 0) -> Built:
    """What was built of a configuration: nothing to complain about."""
    target = target_of(arch)
    result = answer(request(kind, target, dim, value_dim, which=which), target)
    assert isinstance(result, Built), result
    assert problems(result, target) == ()
    return result


def without_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_hopper_multiplies_and_loads_as_it_can() -> None:
    result = answer(request("forward", HOPPER), HOPPER)
    assert isinstance(result, Built | Lowered), result
    text = result.text.read_text()
    assert "wgmma" in text
    assert "tl::tma_load" in text
    # Two warp groups multiply, one loads for them.
    assert result.num_warps == 12
    assert 64 * 1024 < result.shared < 96 * 1024


@needs_nvcc
def test_hopper_without_spills() -> None:
    result = clean("forward", "sm_90", 64)
    assert result.binary.read_bytes().startswith(b"\x7fELF")
    assert (result.spill_stores, result.spill_loads, result.stack) == (0, 0, 0)
    assert result.instructions["wgmma"] > 0
    assert result.instructions["tma_load"] > 0
    assert "mma" not in result.instructions
    assert result.instructions["exp2"] == 128 * 128 // 256 + 2  # one an element, one a row
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)  # no compiler is started
        again = answer(result.request, HOPPER)
    assert again == dataclasses.replace(result, cached=True)


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_best_guesses_are_clean(arch: str, kind: Kind, dim: int) -> None:
    found = clean(kind, arch, dim).instructions
    assert found["wgmma" if arch == "sm_90" else "mma"] > 0
    assert ("tma_load" in found) == (arch == "sm_90")


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_100", "sm_120"])
def test_cousins_compile_the_same_configurations(arch: str) -> None:
    assert clean("forward", arch, 128).instructions["mma"] > 0


@needs_nvcc
@pytest.mark.parametrize(
    ("arch", "kind", "head_dim", "value_dim"),
    [
        pytest.param(arch, kind, *dims, marks=[] if not n else [pytest.mark.slow])
        for n, (arch, kind, dims) in enumerate(
            product(("sm_90", "sm_80"), KINDS[::-1], ((192, 128), (256, 256), (512, 512)))
        )
    ],
)
def test_wide_heads_are_clean(arch: str, kind: Kind, head_dim: int, value_dim: int) -> None:
    """Training too: warps that share rows part the features of dk and dv."""
    clean(kind, arch, head_dim, value_dim)


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_last_resort_compiles(arch: str, kind: Kind) -> None:
    clean(kind, arch, 256, which=-1)


@pytest.mark.slow
@needs_nvcc
def test_sums_that_no_warp_can_hold_are_a_reason_to_drop() -> None:
    kernel = kernel_of("causal", "columns", "bfloat16", 256, 256, "tilelang")
    result = answer(kernel.request(HOPPER, Config(16, 64, 4, 1, descriptors=True)), HOPPER)
    assert isinstance(result, Built), result
    spills, serialised = problems(result, HOPPER)
    assert spills.startswith("spills (")
    assert "C7512" in serialised


def option(kind: Kind, arch: str, dim: int, **asked: bool) -> Built:
    """What was made of an option that tuning tries, which the lists of the target have: nothing to complain of."""
    kernel, target = kernel_of("causal", kind, "bfloat16", dim, dim, "tilelang"), target_of(arch)
    config = dataclasses.replace(kernel.configs(target)[0], **asked)
    assert config in kernel.candidates(target)
    result = answer(kernel.request(target, config), target)
    assert isinstance(result, Built), result
    assert (*problems(result, target), result.stack) == (0,)
    return result


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("dim", [64, 128])
def test_warp_groups_apart_are_clean(dim: int) -> None:
    result = option("forward", "sm_90", dim, apart=True)
    assert result.request.kernel == "groups"
    # Products of the first tile and of the later ones, both followed by the elements of a tile.
    assert result.instructions["wgmma"] > clean("forward", "sm_90", dim).instructions["wgmma"]


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("dim", [64, 128])
def test_queries_in_registers_leave_their_memory_to_tiles(dim: int) -> None:
    result = option("forward", "sm_80", dim, held=True)
    assert result.shared < clean("forward", "sm_80", dim).shared
    loads = [
        line
        for line in result.text.read_text().splitlines()
        if "q_held[(" in line and "ldmatrix" in line
    ]
    assert loads
    assert all("(bfloat16_t*)q_tile)[" in line for line in loads)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_source_for_amd_is_kept(kind: Kind) -> None:
    target = target_of("gfx942")
    result = answer(request(kind, target), target)
    assert isinstance(result, Lowered), result
    assert result.text.suffix == ".hip"
    assert "mfma" in result.text.read_text().lower()
    assert result.num_warps == 4
    assert 0 < result.shared <= target.shared_per_block
    assert "HIP" in result.reason


@pytest.mark.slow
def test_without_nvcc_the_source_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = request("forward", HOPPER)
    without_nvcc(monkeypatch, tmp_path)
    assert find_nvcc() is None
    result = answer(asked, HOPPER)
    assert isinstance(result, Lowered), result
    assert result.reason == "nvcc is not installed"
    assert "tl::tma_load" in result.text.read_text()


@pytest.mark.slow
def test_what_tilelang_refuses_is_said() -> None:
    kernel = kernel_of("causal", "forward", "bfloat16", 64, 64, "tilelang")
    target = target_of("sm_80")
    result = answer(kernel.request(target, Config(64, 64, 4, 3)), target)
    assert isinstance(result, Failed)
    assert "Error" in result.reason.splitlines()[0]


def test_without_tilelang(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    asked = request("forward", HOPPER)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(MissingTilelangError, match="not installed"):
        compile_offline([asked], HOPPER)


def test_names_of_architectures() -> None:
    names = {
        tilelang_arch(target_of(name)) for name in ("sm_80", "sm_89", "sm_90", "sm_120", "gfx942")
    }
    assert names == {"sm_80", "sm_89", "sm_90a", "sm_120a", "gfx942"}


def test_constants_are_those_of_a_call() -> None:
    constants = request("forward", HOPPER, 80).constexprs
    assert (constants["HEAD_DIM"], constants["HEAD_WIDTH"]) == (80, 128)
    assert (constants["THREADS"], constants["REGISTERS"]) == (256, 240)
    assert not constants["PARTED"]
    assert request("columns", HOPPER, 256).constexprs["PARTED"]
    assert {"values", "save_s_max0"} <= set(constants["GIVEN"])  # type: ignore[arg-type]
    assert "kept" not in constants["GIVEN"]  # type: ignore[operator]
    assert "tile_lists" not in constants["GIVEN"]  # type: ignore[operator]
    assert request("rows", target_of("sm_80")).constexprs["REGISTERS"] == 0
    listed = request("columns", HOPPER, name="packed_documents").constexprs
    assert listed["LISTED"]
    assert "tile_lists" in listed["GIVEN"]  # type: ignore[operator]
    assert "dq" not in listed["GIVEN"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("kind", "phase", "fused"),
    [
        ("rows", 1, False),
        pytest.param("rows", 0, True, marks=pytest.mark.slow),
        pytest.param("columns", 1, False, marks=pytest.mark.slow),
        pytest.param("columns", 0, True, marks=pytest.mark.slow),
    ],
)
def test_kernels_that_give_fewer_gradients_compile(kind: Kind, phase: int, fused: bool) -> None:
    target = target_of("sm_80")
    asked = request(kind, target)
    constants = {**asked.constexprs, "PHASE": phase, "FUSED": fused}
    result = answer(dataclasses.replace(asked, constexprs=constants), target)
    assert isinstance(result, Built | Lowered), result
    # Rows whose dq is that of the other kernel are left with their own sums.
    sums_alone = kind == "rows" and fused
    assert ("mma" in result.text.read_text()) != sums_alone
