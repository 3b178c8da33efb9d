"""Generated kernels in their default configurations: no spills, no serialised products, no more memory than there is.

The kernels are those that a GPU would run, compiled for GPUs that are not here.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from generated import EXAMPLES, compiled, kernel_of, kernels_of

from attncompiler.backends.gpu_targets import target_of
from attncompiler.backends.triton_configs import Config, Kind, shared_estimate
from attncompiler.runtime.offline import Built, compile_offline
from attncompiler.tuning.occupancy import problems

pytest.importorskip("triton")

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
EIGHT_BIT_ARCHS = ("sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")
KINDS: tuple[Kind, ...] = ("forward", "rows", "columns")
FIRST, LAST = slice(0, 1), slice(-1, None)
ALL = tuple(sorted(p.stem for p in EXAMPLES.glob("*.py")))
# What each stands for: a plain softmax, 64-bit integers a key, gradients of pairs, masks of many comparisons that are
# found by a scan, work on the value features, a mask that every term needs, sums of rows in two walks, a distance that
# score and mask share.
PICKED: tuple[tuple[str, str, int], ...] = (
    ("causal", "sm_90", 64), ("causal", "sm_90", 128), ("causal", "sm_80", 64), ("causal", "gfx942", 128),
    ("packed_documents", "sm_100", 64), ("t5_bias", "sm_90", 128), ("generalized_neighborhood", "sm_90", 64),
    ("gated_attention", "sm_90", 128), ("reluformer", "sm_90", 64), ("swat", "sm_90", 128),
)  # fmt: skip


# Gradients of a captured tensor, three weighted sums, weights without a sum, listed tiles, work on value features.
WIDE = ("t5_bias", "visual_redistribution", "sigmoid", "packed_documents", "gated_attention")
# Where the first configuration of every example was found to be clean; elsewhere a few formulas need the next one, to
# which a call on a device goes on.
SETTLED = frozenset({("sm_90", 64), ("sm_90", 128), ("gfx942", 64)})
NEXT_ONE: frozenset[tuple[str, str, Kind, int]] = frozenset({
    ("swin", "sm_90", "rows", 128),  # serialised products
})  # fmt: skip


def check(
    name: str, arch: str, kind: Kind, dtype: str, dims: tuple[int, int], which: slice = FIRST
) -> Built:
    """Compile a configuration: nothing to complain about, and no more shared memory than was estimated."""
    target = target_of(arch)
    kernel = kernel_of(name, kind, dtype, *dims)
    ((config, result),) = compiled(kernel, target, which)
    assert isinstance(result, Built), (config, result)
    assert problems(result, target) == (), (config, result)
    # Lists of tiles and statistics of rows take a little beside the tiles; numbers of pairs are loaded ahead.
    spare = 4096
    if kernel.extra.pairs:
        spare += 4 * config.block_m * config.block_n * config.num_stages
    call = kernel.call
    estimate = shared_estimate(
        kind, config, target, dtype, call.head_dim, call.value_dim, kernel.extra
    )
    assert result.shared <= estimate + spare, (config, result.shared, estimate)
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "arch", "dim"), PICKED)
def test_default_configurations_are_clean(name: str, arch: str, dim: int, kind: Kind) -> None:
    check(name, arch, kind, "bfloat16", (dim, dim))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ["causal", "full", "window", *ALL])
def test_every_example_has_a_configuration_that_does_not_spill(
    name: str, arch: str, kind: Kind, dim: int
) -> None:
    if (arch, dim) in SETTLED and (name, arch, kind, dim) not in NEXT_ONE:
        check(name, arch, kind, "bfloat16", (dim, dim))
        return
    kernel, target = kernel_of(name, kind, "bfloat16", dim, dim), target_of(arch)
    each = (compiled(kernel, target, slice(i, i + 1)) for i in range(len(kernel.configs(target))))
    assert any(isinstance(r, Built) and not problems(r, target) for ((_, r),) in each)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ["causal", "cog"])
def test_other_types(name: str, arch: str, kind: Kind, dtype: str, dim: int) -> None:
    check(name, arch, kind, dtype, (dim, dim))


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(16, 16), (80, 80), (192, 128), (256, 256), (512, 512)], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHS)
def test_the_last_resort_compiles(arch: str, kind: Kind, dtype: str, dims: tuple[int, int]) -> None:
    check("causal", arch, kind, dtype, dims, LAST)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dims", [(512, 16), (16, 512), (16, 256), (100, 300), (320, 264), (257, 257)], ids=str
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHS)
def test_the_last_resort_of_other_wide_heads(
    arch: str, kind: Kind, dtype: str, dims: tuple[int, int]
) -> None:
    check("causal", arch, kind, dtype, dims, LAST)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [256, 512])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", WIDE)
def test_the_last_resort_of_other_variants(name: str, arch: str, kind: Kind, dim: int) -> None:
    check(name, arch, kind, "bfloat16", (dim, dim), LAST)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_which_one_side_is_wide(kind: Kind) -> None:
    """Warps shared dk, which is narrow, by its rows, and each had the whole of dv: 1300 bytes a thread."""
    check("causal", "sm_90", kind, "bfloat16", (16, 512), LAST)


def test_a_block_has_all_registers() -> None:
    """Where it needs them: untold, the assembler spilled 48 bytes to have two blocks on an SM."""
    kernel, target = kernel_of("cog", "forward", "bfloat16", 128, 128), target_of("sm_100")
    config = Config(64, 64, 8, 2, descriptors=True)
    alone, told = (
        compile_offline([request], target)[0]
        for request in (
            replace(kernel.request(target, config), registers=0),
            kernel.request(target, config),
        )
    )
    assert isinstance(alone, Built)
    assert isinstance(told, Built)
    assert alone.registers == 128 < told.registers
    assert alone.spill_stores > told.spill_stores == 0
    assert ".maxnreg 255" in told.text.read_text()


def test_the_assembler_is_not_told_of_registers_where_it_does_not_spill() -> None:
    """Told, it took all 255 of them and spilled 36 bytes on top."""
    kernel, target = kernel_of("sigmoid", "forward", "bfloat16", 128, 128), target_of("sm_80")
    request = kernel.request(target, Config(128, 32, 8, 3))
    assert request.registers == 255
    (found,) = compile_offline([request], target)
    assert isinstance(found, Built)
    assert (found.spilled, ".maxnreg" in found.text.read_text()) == (0, False)
    assert found.registers < 255


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_gradients_of_wide_heads_come_in_chunks(kind: Kind) -> None:
    """Whole rows of 512 features as operands were more than a thread's registers, in every tile."""
    kernel = kernel_of("causal", kind, "bfloat16", 512, 512)
    assert all(config.chunk for config in kernel.configs(target_of("sm_90")))
    assert check("causal", "sm_90", kind, "bfloat16", (512, 512)).instructions["async_copy"] > 0


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", ["causal", "alibi"])
def test_eight_bit_floats(name: str, dim: int) -> None:
    """Hopper multiplies them as float16, in the instructions of a warp group, and loads them as they are."""
    found = check(name, "sm_90", "forward", "float8_e4m3fn", (dim, dim)).instructions
    assert found["wgmma"] > 0
    assert found["tma_load"] > 0
    assert "mma" not in found


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(16, 24), (64, 64), (80, 80), (72, 72), (192, 128)], ids=str)
@pytest.mark.parametrize("arch", EIGHT_BIT_ARCHS)
def test_eight_bit_floats_of_other_sizes(arch: str, dims: tuple[int, int]) -> None:
    check("alibi", arch, "forward", target_of(arch).fp8[dims[0] % 3 == 0], dims)


@pytest.mark.slow
@pytest.mark.parametrize("arch", EIGHT_BIT_ARCHS)
def test_the_last_resort_of_eight_bits_compiles(arch: str) -> None:
    for dim in (256, 512):
        check("causal", arch, "forward", target_of(arch).fp8[1], (dim, dim), LAST)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(
    # PyTorch does not add 8-bit floats, as the prepare of swat does.
    "name",
    dict.fromkeys(name for name, _, _ in PICKED if name != "swat"),
)
@pytest.mark.parametrize("arch", EIGHT_BIT_ARCHS)
def test_eight_bit_floats_of_other_variants(arch: str, name: str, dim: int) -> None:
    target = target_of(arch)
    kernel = kernel_of(name, "forward", target.fp8[dim == 128], dim, dim)
    ((config, result),) = compiled(kernel, target)
    assert isinstance(result, Built), (config, result)
    assert problems(result, target) == (), (config, result)


def test_blackwell_multiplies_eight_bits_as_they_are() -> None:
    text = check("causal", "sm_100", "forward", "float8_e4m3fn", (64, 64)).text.read_text()
    assert "tcgen05.mma.cta_group::1.kind::f8f6f4" in text
    assert "tcgen05.mma.cta_group::1.kind::f16" in text  # weights by values


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_120", "gfx90a", "gfx950"])
def test_cousins_compile_the_same_configurations(arch: str, kind: Kind) -> None:
    check("causal", arch, kind, "bfloat16", (128, 128))


def test_hopper_multiplies_and_loads_as_it_can() -> None:
    for kind in KINDS:
        found = check("causal", "sm_90", kind, "bfloat16", (64, 64)).instructions
        assert found["wgmma"] > 0
        assert found["tma_load"] > 0
        assert "mma" not in found
    blackwell = check("causal", "sm_100", "forward", "bfloat16", (64, 64)).instructions
    assert blackwell["tcgen05"] > 0
    assert blackwell["tma_load"] > 0
    ampere = check("causal", "sm_80", "forward", "bfloat16", (64, 64)).instructions
    assert ampere["mma"] > 0
    assert ampere["async_copy"] > 0


def loops_with_products(text: str) -> list[list[str]]:
    """The instructions of each innermost loop in PTX that multiplies, in the order of the text."""
    lines = [line.strip() for line in text.splitlines()]
    starts = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\$L__BB\w+):", line))}
    spans = [
        (starts[m[1]], i)
        for i, line in enumerate(lines)
        if (m := re.search(r"\bbra(?:\.uni)?\s+(\$L__BB\w+);", line)) and starts[m[1]] < i
    ]
    inner = [s for s in spans if not any(s[0] <= t[0] and t[1] <= s[1] and t != s for t in spans)]
    bodies = [lines[begin:end] for begin, end in sorted(inner)]
    return [body for body in bodies if any("wgmma.mma_async" in line for line in body)]


def counts(loop: list[str]) -> Counter[str]:
    """How often each instruction stands in a loop; predicates left out."""
    return Counter(re.split(r"[\s;]", re.sub(r"^@!?%\w+\s+", "", line))[0] for line in loop)


def test_an_element_of_a_softmax_is_one_multiply_add_and_one_exponential() -> None:
    # The walk over full tiles comes first in the kernel, then that over the last tile, which masks.
    kernel = kernel_of("full", "forward", "bfloat16", 64, 64)
    ((config, result),) = compiled(kernel, target_of("sm_90"))
    assert isinstance(result, Built)
    full, masked = map(counts, loops_with_products(result.text.read_text()))
    threads = 32 * config.num_warps
    pairs, sums = config.block_m * config.block_n // threads, config.block_m * 64 // threads
    rows = 2  # of a thread, each with a maximum to scale and a factor for what was summed before
    assert full["ex2.approx.ftz.f32"] == pairs + rows
    assert pairs <= full["fma.rn.f32"] <= pairs + rows
    assert sums <= full["mul.f32"] + full["mul.f32x2"] <= sums + 4 * rows
    assert full["selp.f32"] < pairs <= masked["selp.f32"]
    assert masked["ex2.approx.ftz.f32"] == pairs + rows


def test_a_causal_mask_costs_full_tiles_nothing() -> None:
    for name in ("full", "causal"):
        ((config, result),) = compiled(
            kernel_of(name, "forward", "bfloat16", 64, 64), target_of("sm_90")
        )
        assert isinstance(result, Built)
        full = counts(loops_with_products(result.text.read_text())[0])
        pairs = config.block_m * config.block_n // (32 * config.num_warps)
        assert full["fma.rn.f32"] < pairs + 4
        assert full["selp.f32"] < 16
        assert sum(n for name, n in full.items() if name.startswith("setp")) < 16


def test_amd_multiplies_float32_in_full() -> None:
    """There is no tf32: nothing else may be asked of its compiler, for weights that float16 may not hold either."""
    for dtype in ("float32", "float16", "bfloat16"):
        for kernel in kernels_of("cog", dtype, 64, 64).kernels:
            target = target_of("gfx942")
            constants = kernel.request(target, kernel.configs(target)[0]).constexprs
            assert constants["PRECISION"] == "ieee"
            assert constants.get("WIDEN", "") in ("", "ieee")
            assert "tf32" not in constants.values()
