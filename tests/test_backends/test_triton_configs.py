"""Tile shapes exist for every size on every target, and fit by estimate; test_generated_resources compiles them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attncompiler.backends.gpu_targets import EIGHT_BITS, TARGETS, Target, target_of
from attncompiler.backends.tile_config import most_registers, summed_width
from attncompiler.backends.triton_configs import (
    Config,
    Kind,
    configs,
    forward_configs,
    head_width,
    padded_dim,
    shared_estimate,
)
from attncompiler.backends.triton_work import Extra

DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn")
KINDS: tuple[Kind, ...] = ("forward", "rows", "columns")


def kinds(dtype: str) -> tuple[Kind, ...]:
    """The kernels that inputs of a type have."""
    return ("forward",) if dtype in EIGHT_BITS else KINDS


WIDE = (16, 64, 128, 256, 512)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_head_dimension_has_shapes_that_fit(target: Target, dtype: str) -> None:
    for kind in kinds(dtype):
        for dim in range(1, 513):
            for value_dim in {dim, *((16, 512) if dim in WIDE else ())}:
                found = configs(kind, target, dtype, dim, value_dim)
                assert 1 <= len(found) <= 10
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
                for kind in kinds(dtype):
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
    assert forward_configs(target_of("sm_80"), "bfloat16", 64, 64)[0] == Config(128, 64, 8, 3)


def test_descriptors_want_rows_of_whole_sixteen_bytes() -> None:
    hopper = target_of("sm_90")
    assert all(c.descriptors for c in forward_configs(hopper, "float16", 80, 72))
    assert not any(c.descriptors for c in forward_configs(hopper, "float16", 80, 65))
    assert not any(c.descriptors for c in forward_configs(target_of("sm_80"), "float16", 64, 64))
    assert not any(c.descriptors for c in forward_configs(hopper, "float32", 64, 64))
    assert all(c.descriptors for c in forward_configs(hopper, "float8_e5m2", 80, 64))
    assert not any(c.descriptors for c in forward_configs(hopper, "float8_e5m2", 80, 72))


def test_more_accumulators_leave_smaller_tiles() -> None:
    hopper = target_of("sm_90")
    one, four = (forward_configs(hopper, "bfloat16", 128, 128, n) for n in (1, 4))
    assert one[-1] == four[-1]
    assert len(four) < len(one)
    assert four[0].block_m * four[0].block_n < one[0].block_m * one[0].block_n


def test_a_plain_softmax_keeps_large_tiles_on_hopper() -> None:
    hopper = target_of("sm_90")
    plain = {"forward": Extra(), "rows": Extra(), "columns": Extra(across=2)}
    first = {
        (kind, dim): configs(kind, hopper, "bfloat16", dim, dim, extra)[0]
        for kind, extra in plain.items()
        for dim in (64, 128)
    }
    sides = {case: (c.block_m, c.block_n, c.num_warps) for case, c in first.items()}
    assert sides == {
        ("forward", 64): (128, 128, 8), ("forward", 128): (128, 128, 8),
        ("rows", 64): (128, 128, 8), ("rows", 128): (128, 64, 8),
        ("columns", 64): (64, 128, 8), ("columns", 128): (32, 128, 8),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["forward", "rows"])
@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_100"])
def test_what_a_kernel_keeps_leaves_smaller_tiles(name: str, kind: Kind) -> None:
    """Loads and sums of pairs, many vectors of rows, work on the value features."""
    plain = configs(kind, target_of(name), "bfloat16", 128, 128)[0]
    for extra in (Extra(pairs=14), Extra(pairs=2, down=60), Extra(features=8)):
        found = configs(kind, target_of(name), "bfloat16", 128, 128, extra)[0]
        assert found.block_m * found.block_n / found.num_warps <= (
            plain.block_m * plain.block_n / plain.num_warps
        ), extra
    assert configs(kind, target_of(name), "bfloat16", 128, 128, Extra(pairs=14))[0] != plain


def test_a_forward_that_spills_in_the_smallest_tile_that_suits_others_has_a_smaller_one() -> None:
    """Three sums of float16 values, which are multiplied as tf32: 32 bytes a thread."""
    found = configs("forward", target_of("sm_80"), "float16", 128, 128, Extra(3, 5.0, pairs=2.0))
    assert [(c.block_m, c.block_n, c.num_warps) for c in found] == [(64, 32, 8), (32, 32, 8)]


def test_vectors_of_keys_leave_smaller_tiles() -> None:
    # Packed documents: a 64-bit integer a key spilled 550 bytes of the tile that suits a causal softmax.
    for name, dim in (("sm_90", 64), ("sm_90", 128), ("sm_100", 64), ("sm_80", 128)):
        plain, documents = (
            configs("forward", target_of(name), "bfloat16", dim, dim, extra)[0]
            for extra in (Extra(), Extra(across=2.5))
        )
        assert documents != plain, name
    few, many = (
        configs("columns", target_of("sm_90"), "bfloat16", 64, 64, Extra(across=n))[0]
        for n in (0, 4)
    )
    assert (few.block_m, many.block_m) == (64, 32)


def test_gradients_of_tensors_leave_smaller_tiles() -> None:
    for name in ("sm_90", "sm_80", "sm_100"):
        plain, summed = (
            configs("rows", target_of(name), "bfloat16", 128, 128, Extra(tiles=n))[0]
            for n in (0, 3)
        )
        assert plain.block_m * plain.block_n >= summed.block_m * summed.block_n


def test_what_formulas_share_with_the_mask_leaves_smaller_tiles() -> None:
    """A distance in a score and a window took 180 bytes a thread beside the tile that suits a causal softmax."""
    plain, near = (
        configs("forward", target_of("sm_90"), "bfloat16", 128, 128, Extra(common=n))[0]
        for n in (0, 1)
    )
    assert (plain.block_n, near.block_n) == (128, 64)


def test_scores_that_are_turned_take_registers_in_a_pipeline() -> None:
    def first(extra: Extra) -> Config:
        return configs("columns", target_of("sm_90"), "bfloat16", 128, 128, extra)[0]

    many = Extra(across=10.0, tiles=1, pairs=1.25, down=2)
    assert (first(many).block_m, first(many).num_stages) == (16, 2)
    assert first(replace(many, turned=True)) == replace(first(many), num_stages=1)


def test_no_block_may_use_more_registers_than_there_are() -> None:
    for warps in (1, 4, 8, 16, 32):
        assert most_registers(warps) * 32 * warps <= target_of("sm_90").registers
    assert most_registers(8) == target_of("sm_90").max_registers


def test_sums_of_narrow_heads_are_wider_than_high_where_others_are_wide() -> None:
    assert summed_width(16, "columns", 32, chunk=64) == 64
    assert summed_width(512, "columns", 32, chunk=64) == 512
    assert summed_width(16, "columns", 32, chunk=0) == 16
    assert summed_width(16, "rows", 32, chunk=64) == 16


@pytest.mark.parametrize("kind", ["forward", "rows"])
def test_rows_that_meet_a_tensors_pass_through_amds_memory_as_float32(kind: Kind) -> None:
    """A gate took 64 KiB where 32 were expected, and at 512 features more than a block may have."""
    target, config = target_of("gfx942"), Config(128, 64, 4, 1)
    plain, gated = (
        shared_estimate(kind, config, target, "bfloat16", 128, 128, Extra(loaded=x))
        for x in (False, True)
    )
    assert (plain, gated) == (32768, 65536)
    assert (
        shared_estimate("columns", config, target, "bfloat16", 128, 128, Extra(loaded=True))
        == plain
    )
    for dim in (256, 512):
        for config in configs(kind, target, "bfloat16", dim, dim, Extra(loaded=True)):
            assert 4 * config.block_m * dim <= target.shared_per_block


def test_results_of_odd_rows_pass_through_amds_memory_as_float32() -> None:
    target, config = target_of("gfx942"), Config(16, 16, 4, 1)
    whole, odd = (shared_estimate("forward", config, target, "bfloat16", d, d) for d in (300, 257))
    assert (whole, odd) == (16384, 32768)


def test_eight_warps_of_amd_have_half_the_registers() -> None:
    """Where four warps lacked 38 registers, eight lacked 466."""
    target = target_of("gfx942")
    for extra in (Extra(pairs=5), Extra(accumulators=3), Extra()):
        found = configs("forward", target, "bfloat16", 128, 128, extra)
        eight = [c for c in found if c.num_warps > 4]
        assert bool(eight) == (extra == Extra())


def test_rows_that_begin_anywhere_leave_smaller_tiles_of_a_backward() -> None:
    """Their features are loaded one by one: 65 of them spilled 84 bytes beside the tiles that suit 64."""
    extras: dict[Kind, Extra] = {"rows": Extra(tiles=5), "columns": Extra(across=4, tiles=7)}
    for kind, extra in extras.items():
        odd, even = (
            configs(kind, target_of("sm_80"), "bfloat16", d, d, extra)[0] for d in (65, 72)
        )
        assert odd.block_m * odd.block_n < even.block_m * even.block_n


def test_padding() -> None:
    assert [padded_dim(n) for n in (1, 16, 17, 64, 80, 512)] == [16, 16, 32, 64, 128, 512]
    assert [head_width(n, "bfloat16") for n in (1, 16, 17, 80)] == [16, 16, 32, 128]
    assert [head_width(n, "float8_e4m3fn") for n in (1, 16, 17, 80)] == [32, 32, 32, 128]


def test_the_estimate_is_hoppers_formula() -> None:
    hopper = target_of("sm_90")
    for dim, config, measured in (
        (64, Config(128, 64, 4, 3, True), 66560),
        (64, Config(128, 128, 8, 2, True), 82944),
        (128, Config(128, 64, 4, 3, True), 132096),
        (128, Config(128, 128, 8, 2, True), 164864),
    ):
        assert shared_estimate("forward", config, hopper, "bfloat16", dim, dim) == measured
