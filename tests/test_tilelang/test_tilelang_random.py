"""Variants nobody wrote, in TileLang: every piece is right as C on the CPU, and its kernels are lowered for GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from attncompiler import compile as compile_variant
from attncompiler.artifact.specialize import specializations
from attncompiler.backends.gpu_targets import target_of
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.runtime.gpu_kernels import gpu_kernels
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.offline import Lowered, compile_offline
from tests.random_variants import NORMALIZERS, cycled
from tests.triton_calls import use_tiles

CASE = Case(B=1, H=2, G=1, M=21, N=35, D=8, Dv=6, q_start=14, seed=1)
NUMBERS = range(len(NORMALIZERS))


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_every_piece(number: int) -> None:
    mine = Checker(cycled(number), backend="tilelang", gradients=True)
    use_tiles(mine.operator, 16, 32)
    for c in (*mine.run(CASE).comparisons, *mine.gradients(CASE)):
        # Formulas put together blindly may cancel almost everything: what is left is judged by what went in.
        assert c.error <= max(c.limit, 100 * c.floor), c


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("number", NUMBERS)
def test_every_piece_is_lowered(
    arch: str, number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvcc the sources are the answer
    compilation = compile_variant(cycled(number), backend="tilelang").compilation  # type: ignore[union-attr]
    (wanted,) = specializations(compilation, ("bfloat16",), 64, 64)
    found = gpu_kernels(
        Kernels(compilation), wanted.tensors, wanted.dims, backward=True, language="tilelang"
    ).kernels
    target = target_of(arch)
    asked = [k.request(target, k.configs(target)[0]) for k in found]
    for result in compile_offline(asked, target, timeout_s=600):
        assert isinstance(result, Lowered), result
