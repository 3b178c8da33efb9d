"""What tuning tries of TileLang's kernels beside their tile shapes, and how that reaches calls, builds and packages."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from attncompiler.artifact.triton import _ordered
from attncompiler.backends.gpu_targets import TARGETS, Target, target_of
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.backends.tilelang_configs import configs
from attncompiler.backends.tilelang_options import RASTERS, options
from attncompiler.compiler import compile as compile_variant
from attncompiler.errors import InternalError
from attncompiler.runtime.gpu_kernels import gpu_kernels
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.tilelang_sources import TilelangSources
from attncompiler.runtime.tilings import for_pointers, tilings_for
from attncompiler.runtime.triton_launch import Tiling, of_tilelang
from attncompiler.variant_file import load_variant

KINDS: tuple[Kind, ...] = ("forward", "rows", "columns")
HOPPER = target_of("sm_90")
EXAMPLES = Path(__file__).parents[2] / "examples"


def kernels_of(name: str) -> Kernels:
    return Kernels(compile_variant(load_variant(EXAMPLES / f"{name}.py")).compilation)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [64, 75, 128, 256])
def test_what_tuning_tries(target: Target, kind: Kind, dim: int) -> None:
    plain = configs(kind, target, "bfloat16", dim, dim)
    found = options(kind, target, plain, apart=True)
    assert len(set(found)) == len(found)
    assert not set(found) & set(plain)
    assert {c.usual for c in found} <= set(plain)
    assert {c.raster for c in found if c.usual == plain[0]} >= set(RASTERS)
    assert len(found) <= 7
    hopper = target == HOPPER
    assert any(c.apart for c in found) == (hopper and kind == "forward" and dim != 75)
    assert all(c.descriptors for c in found if c.apart)
    assert any(c.held for c in found) == (target.is_nvidia and not hopper and kind == "forward")


@pytest.mark.parametrize(
    ("name", "dtype", "offered"),
    [
        ("alibi", "bfloat16", True),
        ("alibi", "float16", True),
        ("alibi", "float32", False),  # weights have 16 bits there
        ("signed_linear", "bfloat16", True),
        ("signed_linear", "float16", False),  # it may not hold some weights
        ("scalable_softmax", "bfloat16", False),  # a walk that counts keys reads no scores
    ],
)
def test_which_forwards_may_have_warp_groups_apart(name: str, dtype: str, offered: bool) -> None:
    kernels = kernels_of(name)
    dims = dtype, 64, 64
    found = TilelangSources(kernels).configs("forward", HOPPER, dims)
    assert any(c.apart for c in found) == offered
    types = {t.name: "float32" for t in kernels.kernel.tensors}
    (forward,) = gpu_kernels(kernels, types, dims, language="tilelang").kernels
    candidates = forward.candidates(HOPPER)
    assert any(c.apart for c in candidates) == offered
    # The order of blocks is a number of a call: nothing is compiled for it.
    assert all(c.raster == 1 for c in candidates)
    assert set(candidates) == {c.alike for c in found}
    assert candidates[: len(forward.configs(HOPPER))] == forward.configs(HOPPER)
    for config in candidates:
        asked = forward.request(HOPPER, config)
        assert asked.kernel == ("groups" if config.apart else "forward")
        assert asked.constexprs.get("HELD", False) == config.held


def test_without_timing_the_options_come_last() -> None:
    found = TilelangSources(kernels_of("alibi")).configs("forward", HOPPER, ("bfloat16", 64, 64))
    count = len(configs("forward", HOPPER, "bfloat16", 64, 64))
    assert all(c == c.usual for c in found[:count])
    assert all(c != c.usual for c in found[count:])


def test_options_reach_a_call() -> None:
    base = Config(128, 64, 8, 2, descriptors=True)
    listed = [base, replace(base, raster=4), replace(base, held=True), replace(base, apart=True)]
    x = torch.empty(1, 2, 70, 64, dtype=torch.bfloat16, device="meta")
    usual = Tiling(128, 64, 8, 2, descriptors=True)
    wanted = [
        usual,
        replace(usual, raster=4),
        replace(usual, held=True),
        replace(usual, apart=True),
    ]
    assert tilings_for(listed, x, x, x, shrinks=False).options == wanted
    # TMA cannot load rows that begin anywhere, and warp groups apart have nothing else.
    loose = torch.empty(1, 2, 70, 65, dtype=torch.bfloat16, device="meta")[..., :64]
    assert tilings_for(listed, loose, loose, loose, shrinks=False).options == [
        replace(t, descriptors=False) for t in wanted[:3]
    ]
    odd = torch.empty(9, dtype=torch.bfloat16)[1:]
    assert for_pointers(wanted[1], odd) == replace(wanted[1], descriptors=False)


def test_kernels_of_triton_refuse_them() -> None:
    triton = ModuleType("triton_file")
    assert of_tilelang(Tiling(64, 64, 4, 2), triton) == {}
    for asked in ({"raster": 2}, {"held": True}, {"apart": True}):
        with pytest.raises(InternalError, match="no kernel of Triton knows"):
            of_tilelang(replace(Tiling(64, 64, 4, 2), **asked), triton)


def test_what_an_offline_build_drops_goes_in_every_order() -> None:
    """What spills is not tried in a package, in whatever order of blocks; the last resort stays, before the options."""
    wide, small = Config(128, 128, 8, 2), Config(64, 64, 4, 2)
    turns = replace(wide, raster=4), replace(small, raster=4)
    apart = replace(wide, apart=True)
    listed = [astuple(c) for c in (wide, small, turns[0], apart, turns[1])]
    assert _ordered(listed, None, {wide}) == [astuple(c) for c in (small, apart, turns[1])]
    assert _ordered(listed, small, set()) == [
        astuple(c) for c in (small, wide, turns[0], apart, turns[1])
    ]
    every = {wide, small, apart}
    assert _ordered(listed, None, every) == [astuple(small)]
