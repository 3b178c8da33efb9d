"""Turns requests on stdin into CUDA or HIP source and binaries: ``tilelang_offline.py``'s other half.

A process of its own, because TileLang's compiler may abort or hang; it needs no GPU.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from attncompiler.errors import InternalError
from attncompiler.runtime.gpu_binary import nvidia_resources
from attncompiler.runtime.offline_worker import generated_module, serve
from attncompiler.runtime.tilelang_description import describe_launch
from attncompiler.runtime.tilelang_launch import pass_configs

# How kernels for CUDA are launched, beside their source.
LAUNCH = "launch.json"
# How TileLang calls nvcc at run time; -ftz as pass_configs says.
_FLAGS = ("-cubin", "-std=c++20", "-O3", "-w", "-ftz=true")


def compile_one(request: dict[str, Any]) -> dict[str, Any]:
    """Lower one kernel into the request's folder and compile it where the request names an nvcc.

    Returns the block's shared memory and warps and the seconds, with nvcc the fields of ``Resources`` too.
    """
    begin = time.perf_counter()
    folder = Path(request["folder"])
    text, dynamic, launch = _lowered(request)
    if launch is not None:
        (folder / LAUNCH).write_text(json.dumps(launch))
    bounds = re.findall(r"__launch_bounds__\((\d+)", text)
    found: dict[str, Any] = {"shared": dynamic}
    if request["arch"].startswith("sm_"):
        source = folder / "kernel.cu"
        source.write_text(text)
        if request["nvcc"]:
            found = _built(request["nvcc"], source, request["arch"], dynamic)
    else:
        (folder / "kernel.hip").write_text(text)
    found["num_warps"] = max(map(int, bounds)) // request["warp_size"]
    return {**found, "seconds": round(time.perf_counter() - begin, 3)}


def _lowered(request: dict[str, Any]) -> tuple[str, int, dict[str, Any] | None]:
    """The source in the GPU's own language, the bytes of dynamic shared memory of a launch, and how CUDA launches."""
    import tilelang
    from tilelang import tvm

    module = generated_module(Path(request["source"]))
    make = getattr(module, request["kernel"])
    arch = request["arch"]
    described = (
        {"kind": "cuda", "arch": arch} if arch.startswith("sm_") else {"kind": "hip", "mcpu": arch}
    )
    target = tvm.target.Target(described)
    tma = arch != "sm_90a" or request["constants"]["REGISTERS"] > 0
    apart = request["kernel"] == "groups"
    configs = {key.value: value for key, value in pass_configs(tma=tma, apart=apart).items()}
    with tvm.transform.PassContext(opt_level=3, config=configs), target:
        made = make(**request["constants"])
        lowered = tilelang.lower(made, target=target)
    (function,) = lowered.device_mod.functions.values()
    launch = None
    if arch.startswith("sm_"):
        order = getattr(module, f"{request['kernel'].upper()}_ARGUMENTS")
        launch = _described(made, lowered, order)
    return lowered.kernel_source, int(function.attrs.get("dyn_shared_memory_buf", 0)), launch


def _described(made: Any, lowered: Any, order: list[str]) -> dict[str, Any]:
    """How a kernel is launched without TileLang, or why no launcher here can: the kernel itself is none the worse."""
    try:
        return describe_launch(made, lowered, order)
    except InternalError as error:
        return {"refused": error.detail}


def _built(nvcc: str, source: Path, arch: str, dynamic: int) -> dict[str, Any]:
    """What a block takes, from the cubin beside ``source``; PTX is kept, whose instructions are counted."""
    import tilelang

    home = Path(tilelang.__file__).parent
    included = [f"-I{home / part}" for part in ("src", "3rdparty/cutlass/include")]
    command = [
        nvcc, *_FLAGS, f"-arch={arch}", "-Xptxas", "-v", "--keep", f"--keep-dir={source.parent}", *included,
        str(source), "-o", str(source.with_suffix(".cubin")),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=source.parent)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc ended with status {done.returncode}: {done.stderr[:1500]}")
    resources = nvidia_resources(source.with_suffix(".ptx").read_text(), done.stderr, dynamic, 0)
    for path in source.parent.iterdir():
        if path.suffix not in (".cu", ".cubin", ".ptx") and path.name != LAUNCH:
            path.unlink()
    return dataclasses.asdict(resources)


if __name__ == "__main__":
    serve(compile_one)
