"""The Triton mathematics compiled for devices that are not here, in a process in which nothing is interpreted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("every_function.py")


def assembler(backend: str, arch: str, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), backend, arch, str(folder / "out")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return (folder / ("out.ptx" if backend == "cuda" else "out.amdgcn")).read_text()


@pytest.mark.parametrize("arch", ["80", "90"])
def test_every_function_compiles_for_nvidia(arch: str, tmp_path: Path) -> None:
    text = assembler("cuda", arch, tmp_path)
    assert f".target sm_{arch}" in text
    # Everything is inlined: nothing outside the kernel is declared or called.
    assert not re.findall(r"^\s*(?:\.extern .*|call\b.*)", text, flags=re.MULTILINE)
    instructions = set(re.findall(r"^\s*(?:@!?%p\d+ )?([a-z]\w*(?:\.\w+)+)", text, re.MULTILINE))
    # What the mathematics' comments say about the builtins.
    expected = {"ex2.approx.ftz.f32", "div.full.f32", "div.rn.f32", "sqrt.rn.f32", "fma.rn.f32"}
    expected |= {"rsqrt.approx.ftz.f32", "max.NaN.f32", "max.f32"}
    assert expected <= instructions
    assert not any(i.startswith(("sqrt.approx", "sin.approx", "lg2.approx")) for i in instructions)


def test_every_function_compiles_for_amd(tmp_path: Path) -> None:
    text = assembler("hip", "gfx942", tmp_path)
    assert "v_exp_f32" in text
    assert "s_swappc" not in text
