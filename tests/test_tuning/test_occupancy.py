"""Blocks an SM holds, against numbers worked out by hand."""

from __future__ import annotations

import pytest
from footprints import Print

from attncompiler.backends.gpu_targets import target_of
from attncompiler.tuning.occupancy import occupancy, problems

CASES = [
    # 168 x 32 registers a warp: 3 warps on a quarter of 16384, 12 on the SM.
    ("sm_90", Print(168), 3, "registers"),
    # 255 x 32 become 8192, of which a quarter has two: 8 warps.
    ("sm_80", Print(255, shared=32 * 1024), 2, "registers"),
    ("sm_90", Print(255, num_warps=8), 1, "registers"),
    # 81 KiB and 1 KiB of the system's, twice in 228 KiB.
    ("sm_90", Print(100, shared=82944), 2, "shared memory"),
    ("sm_86", Print(100, shared=49 * 1024), 2, "shared memory"),
    ("sm_86", Print(100, shared=50 * 1024), 1, "shared memory"),
    ("sm_90", Print(32), 16, "warps"),
    ("sm_86", Print(32, num_warps=1), 16, "blocks"),
    ("sm_100", Print(100, shared=40 * 1024, tensor_memory=256), 2, "tensor memory"),
    ("sm_100", Print(100, shared=40 * 1024, tensor_memory=512, num_warps=8), 1, "tensor memory"),
    ("sm_90", Print(40, shared=228 * 1024), 0, "shared memory"),
    # 16 warps of 255 registers want 4 quarters of 32768.
    ("sm_90", Print(255, num_warps=16), 0, "registers"),
    # AMD: 512 registers for each lane of a SIMD in granules of 8; what LLVM prints as occupancy, 2, 1 and 3 waves.
    ("gfx942", Print(241), 2, "registers"),
    ("gfx942", Print(268), 1, "registers"),
    ("gfx942", Print(164), 3, "registers"),
    ("gfx942", Print(60, shared=32768), 2, "shared memory"),
    ("gfx950", Print(60, shared=32768), 4, "shared memory"),  # 33280 in granules of 1280
    ("gfx90a", Print(24, num_warps=1), 16, "blocks"),
]


@pytest.mark.parametrize(("arch", "built", "blocks", "limiter"), CASES)
def test_blocks_and_what_limits_them(arch: str, built: Print, blocks: int, limiter: str) -> None:
    target = target_of(arch)
    found = occupancy(built, target)
    assert (found.blocks, found.limiter) == (blocks, limiter)
    assert found.fraction == blocks * built.num_warps / target.max_warps


def test_a_block_that_does_not_fit_is_a_problem() -> None:
    target = target_of("sm_90")
    assert problems(Print(240, 227 * 1024, 8), target) == ()
    assert problems(Print(240, 228 * 1024, 8), target) == ("shared memory (233472 B of 232448 B)",)
    assert problems(Print(255, num_warps=16), target) == (
        "register file (130560 registers of 65536)",
    )
    assert problems(Print(90, tensor_memory=1024), target_of("sm_100")) == (
        "tensor memory (1024 columns of 512)",
    )


def test_twelve_warps_hold_at_most_168_registers() -> None:
    assert problems(Print(168, num_warps=12), target_of("sm_90")) == ()
    assert problems(Print(176, num_warps=12), target_of("sm_90")) != ()


def test_spills_and_serialised_products_are_problems() -> None:
    bad = Print(255, spill_stores=100, spill_loads=164, warnings=("(C7510) serialized",))
    assert problems(bad, target_of("sm_90")) == (
        "spills (100 B stored, 164 B loaded a thread)",
        "serialised tensor instructions ((C7510) serialized)",
    )
