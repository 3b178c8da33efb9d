"""Tile shapes exist for every size on every target, fit by estimate, and compile without spills where it matters."""

from __future__ import annotations

import pytest
from triton_kernels.flash_requests import request

from attncompiler.backends.gpu_targets import TARGETS, Target, target_of
from attncompiler.backends.triton_configs import (
    Config,
    Kind,
    backward_configs,
    forward_configs,
    padded_dim,
    shared_estimate,
)
from attncompiler.runtime.offline import Built, compile_offline
from attncompiler.tuning.occupancy import problems

DTYPES = ("float32", "bfloat16", "float16")
KERNELS: dict[Kind, str] = {
    "forward": "forward",
    "rows": "rows_backward",
    "columns": "columns_backward",
}
WIDE = (16, 64, 128, 256, 512)


def configs(kind: Kind, target: Target, dtype: str, dim: int, value_dim: int) -> tuple[Config, ...]:
    if kind == "forward":
        return forward_configs(target, dtype, dim, value_dim)
    return backward_configs(target, dtype, dim, value_dim, kind)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_head_dimension_has_shapes_that_fit(target: Target, dtype: str) -> None:
    for kind in KERNELS:
        for dim in range(1, 513):
            for value_dim in {dim, *((16, 512) if dim in WIDE else ())}:
                found = configs(kind, target, dtype, dim, value_dim)
                assert 1 <= len(found) <= 8
                assert len(set(found)) == len(found)
                for config in found:
                    sides = (config.block_m, config.block_n)
                    # Two float32 rows of 512 a lane leave room for eight of them.
                    wide = dtype == "float32" and max(dim, value_dim) > 256
                    assert min(sides) >= (8 if wide else 16)
                    assert all(n & (n - 1) == 0 for n in (*sides, config.num_warps))
                    assert config.num_warps * target.warp_size <= 1024
                    assert config.num_stages >= 1
                    used = shared_estimate(kind, config, target, dtype, dim, value_dim)
                    assert used <= target.shared_per_block, (kind, dim, value_dim, config)


def test_usual_sizes_have_a_choice() -> None:
    for target in TARGETS.values():
        for dtype in DTYPES:
            for dim in (64, 128):
                for kind in KERNELS:
                    assert len(configs(kind, target, dtype, dim, dim)) >= 3, (
                        target.name,
                        dtype,
                        dim,
                        kind,
                    )


def test_what_the_best_guesses_are() -> None:
    hopper = target_of("sm_90")
    first = forward_configs(hopper, "bfloat16", 128, 128)[0]
    assert first == Config(128, 128, 8, 2, descriptors=True)
    # Never the shape that spills with loads by pointer.
    pointers = forward_configs(hopper, "bfloat16", 127, 127)
    assert not any(c.descriptors for c in pointers)
    assert Config(128, 64, 4, 3) not in pointers
    assert forward_configs(target_of("sm_80"), "bfloat16", 128, 128)[0].block_n == 64


def test_descriptors_want_rows_of_whole_sixteen_bytes() -> None:
    hopper = target_of("sm_90")
    assert all(c.descriptors for c in forward_configs(hopper, "float16", 80, 72))
    assert not any(c.descriptors for c in forward_configs(hopper, "float16", 80, 65))
    assert not any(c.descriptors for c in forward_configs(target_of("sm_80"), "float16", 64, 64))
    assert not any(c.descriptors for c in forward_configs(hopper, "float32", 64, 64))


def test_more_accumulators_leave_smaller_tiles() -> None:
    hopper = target_of("sm_90")
    one, four = (forward_configs(hopper, "bfloat16", 128, 128, n) for n in (1, 4))
    assert one[-1] == four[-1]
    assert len(four) < len(one)
    assert four[0].block_m * four[0].block_n < one[0].block_m * one[0].block_n


def test_padding() -> None:
    assert [padded_dim(n) for n in (1, 16, 17, 64, 80, 512)] == [16, 16, 32, 64, 128, 512]


def test_the_estimate_is_hoppers_formula() -> None:
    hopper = target_of("sm_90")
    for dim, config, measured in (
        (64, Config(128, 64, 4, 3, True), 66560),
        (64, Config(128, 128, 8, 2, True), 82944),
        (128, Config(128, 64, 4, 3, True), 132096),
        (128, Config(128, 128, 8, 2, True), 164864),
    ):
        assert shared_estimate("forward", config, hopper, "bfloat16", dim, dim) == measured


def check(arch: str, kind: Kind, dtype: str, dim: int, value_dim: int, which: slice) -> None:
    """Compile some of the shapes: no spills, and no more shared memory than there is and than was estimated."""
    pytest.importorskip("triton")
    target = target_of(arch)
    chosen = configs(kind, target, dtype, dim, value_dim)[which]
    requests = [request(KERNELS[kind], config, dtype, dim, value_dim) for config in chosen]
    for config, result in zip(chosen, compile_offline(requests, target), strict=True):
        assert isinstance(result, Built), (config, result)
        assert problems(result, target) == (), (config, result)
        assert result.shared <= shared_estimate(kind, config, target, dtype, dim, value_dim), config


FIRST, LAST = slice(0, 1), slice(-1, None)


@pytest.mark.parametrize(
    ("arch", "kind", "dtype", "dim", "which"),
    [
        ("sm_90", "forward", "bfloat16", 128, FIRST),
        ("sm_90", "columns", "bfloat16", 64, FIRST),
        ("sm_80", "rows", "float16", 128, FIRST),
        ("sm_90", "forward", "float32", 64, FIRST),
        ("gfx942", "forward", "bfloat16", 128, FIRST),
        ("sm_100", "rows", "bfloat16", 128, FIRST),
        ("sm_86", "forward", "bfloat16", 512, LAST),
    ],
)
def test_seeds_compile_without_spills(
    arch: str, kind: Kind, dtype: str, dim: int, which: slice
) -> None:
    check(arch, kind, dtype, dim, dim, which)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_the_best_guess_compiles(arch: str, kind: Kind, dtype: str, dim: int) -> None:
    check(arch, kind, dtype, dim, dim, FIRST)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(16, 16), (80, 80), (192, 128), (256, 256), (512, 512)], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_the_last_resort_compiles(arch: str, kind: Kind, dtype: str, dims: tuple[int, int]) -> None:
    if arch == "gfx942" and dtype == "float32" and dims == (512, 512) and kind != "forward":
        pytest.skip("four float32 rows of 512 in registers: no tile of 16 compiles without spills")
    check(arch, kind, dtype, *dims, LAST)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_120", "gfx90a", "gfx950"])
def test_cousins_compile_the_same_seeds(arch: str, kind: Kind) -> None:
    check(arch, kind, "bfloat16", 128, 128, FIRST)
