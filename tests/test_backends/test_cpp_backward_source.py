"""Generated backward files compile without a warning and say what they do; Clang builds the same operator."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cpp_harness import BUILDS
from test_cpp_backward import CASES, VARIANTS, Epilogue, Pairs, assert_gradients
from test_cpp_source import Masked, Odd, compilers

from attncompiler.backends.cpp import Specialization, render_backward
from attncompiler.check import Checker
from attncompiler.compiler import compile_levels
from attncompiler.dsl import Variant
from attncompiler.frontend import trace
from attncompiler.ir.passes.differentiate import differentiate
from attncompiler.ir.passes.lower_gradient import lower_gradient
from attncompiler.runtime.toolchain import find_toolchain

DTYPES = ("float32", "bfloat16", "float16", "float64")


def source(variant: type[Variant], dtype: str, wanted: frozenset[str] | None = None) -> str:
    """The backward of a variant whose tensors are of the usual types."""
    gradient = differentiate(compile_levels(trace(variant())).plan)
    if wanted is None:
        wanted = frozenset(t.name for t in gradient.program.tensors)
    backward = lower_gradient(gradient, wanted)
    usual = {"float": "float32", "int": "int64", "bool": "bool"}
    spec = Specialization(dtype, 31, 24, tuple(usual[t.kind] for t in backward.tensors))
    return render_backward(backward, spec, "title", "class Variant: ...", "again")


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("variant", [*VARIANTS, Masked, Odd])
def test_no_warnings(
    variant: type[Variant], compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler not in compilers():
        pytest.skip(f"{compiler} is not installed")
    monkeypatch.setenv("CXX", compiler)
    toolchain = find_toolchain()
    file = tmp_path / "kernel.cpp"
    for dtype in DTYPES if variant in (Masked, Odd) else ("float32", "bfloat16"):
        file.write_text(source(variant, dtype))
        for build in BUILDS if variant is Masked else ("native",):
            flags = [*toolchain.flags, *BUILDS[build].split(), "-Wall", "-Wextra", "-Werror"]
            # Only the optimiser sees what may be used uninitialised.
            optimised = variant is Masked and build == "native" and dtype == "bfloat16"
            mode = ["-c", "-o", str(tmp_path / "kernel.o")] if optimised else ["-fsyntax-only"]
            command = [*toolchain.command, *flags, *mode, str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{dtype} {build}\n{done.stderr[:3000]}"


@pytest.mark.skipif("clang++" not in compilers(), reason="clang++ is not installed")
@pytest.mark.parametrize(
    ("variant", "dtype"), [(Pairs, "float32"), (Epilogue, "bfloat16"), (Epilogue, "float64")]
)
def test_clang_builds_the_same_operator(
    variant: type[Variant], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "clang++")
    assert_gradients(Checker(variant()), CASES[:3], dtype)


def test_only_wanted_gradients_are_printed() -> None:
    assert "t_lift_copy_b" in source(Pairs, "float32")
    assert "t_lift_copy_b" not in source(Pairs, "float32", frozenset({"bias"}))
    assert "scatter(" not in source(Pairs, "float32", frozenset())


def test_the_file_says_what_it_is() -> None:
    head = source(Epilogue, "float32").split("#include")[0]
    assert head.startswith("// title\n")
    assert "//     class Variant: ..." in head
    assert "Regenerate it with: again" in head
    for product in ("dV[j][d]", "dK[j][d]", "dQ[d][lane]"):
        assert product in head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_in_other_types(dtype: torch.dtype) -> None:
    """Captured tensors of another floating type than q get gradients in their own."""
    checker = Checker(Epilogue())
    case = checker.fitted(replace(CASES[0], dtype=str(dtype).removeprefix("torch.")))
    q, k, v, tensors = checker.inputs(case)
    for other in (torch.float64, torch.float16):
        mine = {n: t.to(other).requires_grad_() for n, t in tensors.items()}
        out = checker.operator(q, k, v, q_start=case.q_start, **mine)
        found = torch.autograd.grad(out.float().sum(), list(mine.values()))
        assert all(g.dtype == other and bool(g.isfinite().all()) for g in found)
