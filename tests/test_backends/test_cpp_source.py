"""Generated files compile without a warning, on GCC and on Clang, for every instruction set."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cpp_harness import BUILDS

import attncompiler
from attncompiler import oracle
from attncompiler.dsl import (
    Tensor,
    Variant,
    bit_length,
    causal,
    cos,
    erf,
    exp,
    log,
    maximum,
    sign,
    sqrt,
    tanh,
)
from attncompiler.runtime.toolchain import find_toolchain


class Plain(Variant):
    pass


class Masked(Variant):
    """Tensors of every kind, parameters of every kind, an epilogue with a reduction."""

    window: int = 20
    slope: float = 0.5
    flip: bool = False
    ids = Tensor("b", "k", dtype="int")
    open = Tensor("q", "k", dtype="bool")
    bias = Tensor("h", "q", "k")
    gate = Tensor("h", "d")

    def score(self, s, at):  # type: ignore[no-untyped-def]
        return 30 * tanh(s / 30) + self.bias[at.h, at.q, at.k] - self.slope * abs(at.q - at.k)

    def mask(self, at):  # type: ignore[no-untyped-def]
        near = causal(at) & (at.q - at.k < self.window) | (self.ids[at.b, at.k] % 3 == at.q % 3)
        return near & self.open[at.q, at.k] | (self.flip & (at.k == 0))

    def output(self, o, at):  # type: ignore[no-untyped-def]
        return o / sqrt(at.mean(o * o) + 1e-6) * self.gate[at.h, at.d] + at.stats.lse * 0


class Odd(Variant):
    """Functions and integers that few variants use, and a second pass."""

    def score(self, s, at):  # type: ignore[no-untyped-def]
        far = bit_length(maximum(at.q - at.k, 0)) + (at.k**3 // 7) % 5 + (1 << at.k % 20)
        return s + cos(s) + erf(s) * sign(s) + (s // 0.5) * far * (at.q == at.k)

    def normalize(self, s, row):  # type: ignore[no-untyped-def]
        z = (s - row.mean(s)) / sqrt(row.mean((s - row.mean(s)) ** 2) + 1e-6)
        e = exp(z - row.max(z))
        row.keep("spread", log(row.sum(e)))
        return e / row.sum(e)


def compilers() -> list[str]:
    return [name for name in ("g++", "clang++") if shutil.which(name)]


@pytest.mark.parametrize("variant", [Plain, Masked, Odd])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_no_warnings(
    compiler: str, variant: type[Variant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler not in compilers():
        pytest.skip(f"{compiler} is not installed")
    monkeypatch.setenv("CXX", compiler)
    toolchain = find_toolchain()
    op = attncompiler.compile(variant)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        source = tmp_path / "kernel.cpp"
        source.write_text(op.source(dtype=dtype, head_dim=31, value_dim=24))
        for build, flags in BUILDS.items():
            if dtype in (torch.float16, torch.float64) and build != "native":
                continue
            warnings = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
            command = [*toolchain.command, *toolchain.flags, *flags.split(), *warnings, str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{dtype} {build}\n{done.stderr[:3000]}"


@pytest.mark.skipif("clang++" not in compilers(), reason="clang++ is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clang_builds_the_same_operator(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "clang++")
    q, k, v = (torch.randn(2, 4, 300, 64).to(dtype) for _ in range(3))
    found = attncompiler.compile(Plain)(q, k, v)
    wanted = oracle.attention(Plain(), q, k, v, tensors={}).out
    plain = oracle.attention(Plain(), q, k, v, tensors={}, dtype=None).out
    limit = 2 * (plain.double() - wanted).abs().max() + torch.finfo(dtype).eps
    assert (found.double() - wanted).abs().max() <= limit
