"""The table of GPU architectures is consistent in itself, and unknown names are answered with the known ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from attncompiler.backends.gpu_targets import EIGHT_BITS, TARGETS, Target, target_of
from attncompiler.commands import options
from attncompiler.runtime import call_checks
from attncompiler.runtime.errors import UnknownTargetError

NAMES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950")


def test_all_architectures_are_there() -> None:
    assert tuple(TARGETS) == NAMES
    assert all(target_of(name).name == name for name in NAMES)


@pytest.mark.parametrize("target", TARGETS.values(), ids=NAMES)
def test_numbers_fit_each_other(target: Target) -> None:
    assert target.max_threads == target.max_warps * target.warp_size
    assert target.shared_per_block <= target.shared_per_sm
    assert target.max_blocks <= target.max_warps
    # All threads an SM holds get at least 32 registers.
    assert target.registers >= 32 * target.max_threads
    # Both units of the peak agree: dense multiply-adds a clock of an SM are a power of two, the clocks being rounded.
    per_clock = target.tensor_tflops * 1e12 / (target.sms * target.clock * 1e9)
    nearest = 2 ** round(per_clock).bit_length()
    assert min(abs(per_clock / nearest - 1), abs(2 * per_clock / nearest - 1)) < 0.05


def test_eight_bit_floats() -> None:
    assert set(EIGHT_BITS) == set(call_checks.EIGHT_BITS.values()) == set(options.EIGHT_BITS)
    assert all(str(dtype) == f"torch.{name}" for dtype, name in call_checks.EIGHT_BITS.items())
    for target in TARGETS.values():
        assert set(target.fp8) <= set(EIGHT_BITS)
        assert [target.lacks(t) == "" for t in EIGHT_BITS] == [t in target.fp8 for t in EIGHT_BITS]
        assert target.lacks("bfloat16") == ""
        assert bool(target.fp8) or not target.narrow_sums
    with_them = {"sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"}
    assert {t.name for t in TARGETS.values() if t.fp8} == with_them


def test_triton_names() -> None:
    assert target_of("sm_100").triton_arch == 100
    assert target_of("gfx942").triton_arch == "gfx942"


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownTargetError) as caught:
        target_of("sm90")
    text = str(caught.value)
    assert "no GPU architecture 'sm90'" in text
    assert text.index("sm_90") < text.index("gfx942")
    assert all(name in text for name in NAMES)


def test_the_table_needs_neither_torch_nor_triton() -> None:
    code = (
        "import sys, attncompiler.backends.gpu_targets, attncompiler.backends.triton_configs, "
        "attncompiler.runtime.offline, attncompiler.tuning.cost, attncompiler.tuning.resource_table\n"
        "assert not {'torch', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
