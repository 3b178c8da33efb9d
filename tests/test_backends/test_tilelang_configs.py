"""TileLang's tile shapes exist for every size on every target and fit by estimate; test_tilelang_offline compiles."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from attncompiler.backends.gpu_targets import TARGETS, Target, target_of
from attncompiler.backends.tile_config import Config, Kind, parted, tilelang_width
from attncompiler.backends.tilelang_configs import configs, family_of, shared_estimate
from attncompiler.backends.triton_work import Extra

KINDS: tuple[Kind, ...] = ("forward", "rows", "columns")


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_head_dimension_has_shapes(target: Target) -> None:
    family = family_of(target)
    for kind in KINDS:
        for dtype in ("bfloat16", "float16", "float32"):
            for dim in (*range(1, 257, 5), 256, 512):
                found = configs(kind, target, dtype, dim, dim)
                assert len(set(found)) == len(found) >= 1
                for config in found:
                    owned, walked = config.block_m, config.block_n
                    if kind == "columns":
                        owned, walked = walked, owned
                    # Matrix instructions give every warp at least 16 rows by 8; Hopper's are given out by four warps.
                    assert owned // 16 * (walked // 8) >= config.num_warps
                    assert dim > 128 or not parted(kind, *astuple(config)[:3])
                    assert family != "wgmma" or config.num_warps % 4 == 0
                    sides = (config.block_m, config.block_n, config.num_warps)
                    assert all(n & (n - 1) == 0 for n in sides)
                    assert config.num_stages <= (2 if family == "wgmma" else 1)
                    assert config.num_warps * target.warp_size <= 1024
                    used = shared_estimate(kind, config, target, dtype, dim, dim)
                    if dtype != "float32" and (dim <= 256 or kind == "forward"):
                        assert used <= target.shared_per_block, (kind, dim, config)


def test_usual_sizes_have_a_choice() -> None:
    for target in TARGETS.values():
        for kind in KINDS:
            for dim in (64, 128):
                assert len(configs(kind, target, "bfloat16", dim, dim)) >= 2


def test_what_the_best_guesses_are() -> None:
    hopper = target_of("sm_90")
    for dim in (64, 128):
        assert configs("forward", hopper, "bfloat16", dim, dim)[0] == Config(128, 128, 8, 2, True)
        assert configs("columns", hopper, "bfloat16", dim, dim)[0] == Config(64, 128, 8, 1, True)


def test_what_a_kernel_keeps_moves_wide_blocks_back() -> None:
    hopper = target_of("sm_90")
    plain = configs("forward", hopper, "bfloat16", 64, 64)
    full = configs("forward", hopper, "bfloat16", 64, 64, Extra(accumulators=2))
    assert plain[0] == full[-2] == Config(128, 128, 8, 2, descriptors=True)
    assert set(plain) == set(full)
    assert plain[-1] == full[-1]


def test_what_memory_rules_out() -> None:
    hopper = target_of("sm_90")
    wide = Config(128, 128, 8, 2, descriptors=True)
    assert shared_estimate("forward", wide, hopper, "bfloat16", 64, 64) == 81 * 1024
    assert shared_estimate("rows", wide, hopper, "bfloat16", 64, 64) == 97 * 1024
    assert wide in configs("forward", hopper, "bfloat16", 128, 128)
    assert wide not in configs("forward", hopper, "float32", 128, 128)


def test_rows_of_bytes_that_16_does_not_divide_are_not_loaded_by_tma() -> None:
    hopper = target_of("sm_90")
    assert all(c.descriptors for c in configs("rows", hopper, "bfloat16", 72, 72))
    assert not any(c.descriptors for c in configs("rows", hopper, "bfloat16", 72, 75))


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_120"])
def test_sums_take_half_of_a_threads_registers_at_most(name: str) -> None:
    target = target_of(name)
    for kind in KINDS:
        for dim in (64, 128, 192, 256, 320, 512):
            for config in configs(kind, target, "bfloat16", dim, dim):
                width = tilelang_width(dim, pointers=not config.descriptors)
                sums = (config.block_n * 2 if kind == "columns" else config.block_m) * width
                assert sums <= 128 * 32 * config.num_warps, (kind, dim, config)


def test_tiles_that_threads_load_are_as_wide_as_a_power_of_two() -> None:
    assert [tilelang_width(n) for n in (20, 72, 192, 200)] == [32, 128, 192, 256]
    assert [tilelang_width(n, pointers=True) for n in (20, 72, 192, 257)] == [32, 128, 256, 512]
