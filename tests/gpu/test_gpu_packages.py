"""Packages of TileLang kernels on a GPU: built here with nvcc, run in a process where TileLang cannot be imported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attncompiler.runtime.carried_binaries import capability_of
from attncompiler.runtime.tilelang_offline import find_nvcc
from attncompiler.runtime.tilings import choice_of
from tests.test_artifact import ROOT, build, run

# As ``python -m packed.selftest``, where nothing finds the compilers.
BLOCKED = """
import runpy, sys

for name in ("tilelang", "attncompiler"):
    sys.modules[name] = None
runpy.run_module("packed.selftest", run_name="__main__")
"""


@pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed")
@pytest.mark.parametrize("name", ["alibi", "sigmoid", "packed_documents"])
def test_binaries_of_a_package(name: str, tmp_path: Path, device: torch.device) -> None:
    pytest.importorskip("tilelang", reason="TileLang, which lowers the kernels, is not installed")
    target = choice_of(device).target
    if capability_of(target.name) != torch.cuda.get_device_capability(device):
        pytest.skip(f"this GPU is not listed; it gets the tiles of {target.name}")
    options = ("--backend", "tilelang", "--arch", target.name, "--backward")
    assert build(ROOT / "examples" / f"{name}.py", "--out", tmp_path / "packed", *options) == 0
    done = run("-c", BLOCKED, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("on cuda\n")
    assert done.stdout.endswith("all passed\n")
