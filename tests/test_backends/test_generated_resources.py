"""Generated kernels in their default configurations: no spills, no serialised products, no more memory than there is.

The kernels are those that a GPU would run, compiled for GPUs that are not here.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
from generated import REPRESENTATIVE, compiled, kernel_of, kernels_of

from attncompiler.backends.gpu_targets import target_of
from attncompiler.backends.triton_configs import Kind, shared_estimate
from attncompiler.runtime.offline import Built
from attncompiler.tuning.occupancy import problems

pytest.importorskip("triton")

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
KINDS: tuple[Kind, ...] = ("forward", "rows", "columns")
FIRST, LAST = slice(0, 1), slice(-1, None)


def check(
    name: str, arch: str, kind: Kind, dtype: str, dims: tuple[int, int], which: slice = FIRST
) -> Built:
    """Compile a configuration: nothing to complain about, and no more shared memory than was estimated."""
    target = target_of(arch)
    ((config, result),) = compiled(kernel_of(name, kind, dtype, *dims), target, which)
    assert isinstance(result, Built), (config, result)
    assert problems(result, target) == (), (config, result)
    # Lists of tiles and statistics of rows take a little beside the tiles.
    estimate = shared_estimate(kind, config, target, dtype, *dims)
    assert result.shared <= estimate + 4096, (config, result.shared, estimate)
    return result


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ["causal", "packed_documents", "sigmoid"])
def test_default_configurations_are_clean(name: str, arch: str, kind: Kind, dim: int) -> None:
    check(name, arch, kind, "bfloat16", (dim, dim))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_default_configurations_of_other_variants(
    name: str, arch: str, kind: Kind, dim: int
) -> None:
    check(name, arch, kind, "bfloat16", (dim, dim))


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


def loop_of_full_tiles(text: str) -> list[str]:
    """The instructions of the first loop in PTX with matrix products and no comparison of pairs: that of full tiles."""
    blocks: dict[str, list[str]] = {}
    label = ""
    for line in text.splitlines():
        if found := re.match(r"\s*(\$\w+):", line):
            label = found[1]
            blocks[label] = []
        elif label:
            blocks[label].append(line.strip())
    loops = [
        lines
        for name, lines in blocks.items()
        if any("wgmma.mma_async" in x for x in lines)
        and any("bra" in x and name in x for x in lines)
    ]
    assert loops
    return min(loops, key=lambda lines: sum("setp" in x for x in lines))


def test_an_element_of_a_softmax_is_one_multiply_add_and_one_exponential() -> None:
    # Softmax without a mask, 128 queries x 128 keys on 8 warps: 64 pairs a thread.
    target = target_of("sm_90")
    kernel = kernel_of("full", "forward", "bfloat16", 64, 64)
    ((config, result),) = compiled(kernel, target)
    assert isinstance(result, Built)
    pairs = config.block_m * config.block_n // (32 * config.num_warps)
    accumulated = config.block_m * 64 // (32 * config.num_warps)
    loop = loop_of_full_tiles(result.text.read_text())
    opcodes = Counter(re.split(r"[\s;]", re.sub(r"^@!?%\w+\s+", "", x))[0] for x in loop)

    def count(prefix: str) -> int:
        return sum(n for name, n in opcodes.items() if name.startswith(prefix))

    rows = 2  # of a thread, each with a factor that rescales what was summed
    assert count("ex2.approx") == pairs + rows
    assert pairs <= count("fma.rn") <= pairs + 2 * rows, opcodes
    assert count("mul") <= accumulated + 4 * rows, opcodes


def test_amd_multiplies_float32_in_full() -> None:
    """There is no tf32: nothing else may be asked of its compiler, for weights that float16 may not hold either."""
    for dtype in ("float32", "float16", "bfloat16"):
        for kernel in kernels_of("cog", dtype, 64, 64).kernels:
            target = target_of("gfx942")
            constants = kernel.request(target, kernel.configs(target)[0]).constexprs
            assert constants["PRECISION"] == "ieee"
            assert constants.get("WIDEN", "") in ("", "ieee")
            assert "tf32" not in constants.values()
