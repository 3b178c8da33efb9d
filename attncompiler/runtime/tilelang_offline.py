"""Asks TileLang for kernels of GPUs that are not here: their source in CUDA or HIP and, where nvcc is, binaries.

A kernel is lowered by TileLang as a call would lower it. What nvcc makes of the CUDA source tells registers, spills and
instructions; without nvcc, and for AMD always, the source is the answer.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from attncompiler.backends.gpu_targets import Target
from attncompiler.runtime.errors import MissingTilelangError
from attncompiler.runtime.offline_process import OfflineCompiler
from attncompiler.runtime.offline_records import Built, KernelRequest, Lowered

# Part of the key: raise it when the report or the options of the compilers change.
_FORMAT = "2"
_NO_NVCC = "nvcc is not installed"
_NO_HIP = "no compiler for HIP is asked"


def find_nvcc() -> str | None:
    """NVIDIA's compiler: that of ``$CUDA_HOME``, else the first one on the path; None where there is none."""
    return _nvcc(os.environ.get("CUDA_HOME", ""), os.environ.get("PATH", ""))


@cache
def _nvcc(home: str, path: str) -> str | None:
    found = home and shutil.which("nvcc", path=str(Path(home) / "bin"))
    return found or shutil.which("nvcc", path=path)


@cache
def _nvcc_version(nvcc: str) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


def _version() -> str:
    try:
        version = importlib.metadata.version("tilelang")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingTilelangError from error
    nvcc = find_nvcc()
    return "\n".join((_FORMAT, version, _nvcc_version(nvcc) if nvcc else ""))


def _question(request: KernelRequest, target: Target) -> dict[str, object]:
    return {
        "source": str(request.source.resolve()), "kernel": request.kernel, "constants": dict(request.constexprs),
        "arch": tilelang_arch(target), "warp_size": target.warp_size,
        "nvcc": find_nvcc() if target.is_nvidia else None,
    }  # fmt: skip


def tilelang_arch(target: Target) -> str:
    """The architecture as TileLang names it: with what only this generation has, from Hopper on."""
    newer = target.is_nvidia and int(target.name.removeprefix("sm_")) >= 90
    return f"{target.name}a" if newer else target.name


def _answer(request: KernelRequest, target: Target, folder: Path, cached: bool) -> Built | Lowered:
    report = json.loads((folder / "report.json").read_text())
    text = folder / ("kernel.cu" if target.is_nvidia else "kernel.hip")
    if "registers" not in report:
        reason = _NO_NVCC if target.is_nvidia else _NO_HIP
        return Lowered(request, target, text, **report, reason=reason, cached=cached)
    report["warnings"] = tuple(report["warnings"])
    return Built(request, target, folder / "kernel.cubin", text, **report, cached=cached)


TILELANG = OfflineCompiler("attncompiler.runtime.tilelang_worker", _version, _question, _answer)
