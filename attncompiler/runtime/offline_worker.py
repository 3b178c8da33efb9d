"""Turns requests on stdin into GPU binaries and answers on stdout, one JSON line each: ``offline.py``'s other half.

A process of its own, because Triton's compiler may hang, abort or fail an assertion; it needs no GPU. A request says
where the kernel's source is, how its arguments look and into which folder the binary goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from attncompiler.runtime.gpu_binary import Resources, amd_resources, nvidia_resources

# The suffixes of the binary and of the text it is assembled from.
FILES = {"cuda": ("cubin", "ptx"), "hip": ("hsaco", "amdgcn")}


def main() -> None:
    """Answer every request for a Triton kernel until stdin ends."""
    serve(compile_one)


def serve(compile_one: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer every request with what ``compile_one`` reports about it until stdin ends."""
    # What compilers print must not land between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answer: dict[str, Any]
        try:
            answer = {"report": compile_one(json.loads(line))}
        except Exception as error:  # whatever a kernel's source or the compiler raises
            answer = {"reason": _reason(error)}
        answers.write(json.dumps(answer) + "\n")


def _reason(error: BaseException) -> str:
    """What went wrong in one line, then where: Triton wraps an error once for each call it was found under."""
    place = ""
    while True:
        # What Triton raises has the message apart from its text, which is an excerpt of the source.
        message = getattr(error, "error_message", None)
        if hasattr(error, "error_message"):
            place = f"\n{error}"
        if error.__cause__ is None:
            return f"{type(error).__name__}: {message or error}{place}"
        error = error.__cause__


def compile_one(request: dict[str, Any]) -> dict[str, Any]:
    """Compile one kernel into the request's folder; returns the fields of ``Resources``, warps and seconds."""
    import triton
    from triton.backends.compiler import GPUTarget

    kernel = getattr(generated_module(Path(request["source"])), request["kernel"])
    constants = request["constexprs"]
    names = kernel.arg_names
    unknown = (request["signature"].keys() | constants.keys()) - set(names)
    missing = set(names) - request["signature"].keys() - constants.keys()
    if unknown or missing:
        raise ValueError(f"arguments unknown: {sorted(unknown)}, without a type: {sorted(missing)}")
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else request["signature"][n] for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in request["aligned"]},
    )
    backend = request["backend"]
    options = {key: request[key] for key in ("num_warps", "num_stages")}
    if request["registers"]:
        options["maxnreg"] = request["registers"]
    log = io.StringIO()
    begin = time.perf_counter()
    with contextlib.redirect_stdout(log):
        built = triton.compile(
            source,
            target=GPUTarget(backend, request["arch"], request["warp_size"]),
            options={**options, "enable_fp_fusion": True},
        )
    seconds = time.perf_counter() - begin
    binary, text = FILES[backend]
    folder = Path(request["folder"])
    (folder / f"kernel.{binary}").write_bytes(built.asm[binary])
    (folder / f"kernel.{text}").write_text(built.asm[text])
    resources = _resources(backend, built, log.getvalue())
    extras = {"num_warps": built.metadata.num_warps, "seconds": round(seconds, 3)}
    return {**dataclasses.asdict(resources), **extras}


def _resources(backend: str, built: Any, log: str) -> Resources:
    if backend == "hip":
        return amd_resources(built.asm["amdgcn"], built.metadata.shared)
    columns = getattr(built.metadata, "tmem_size", 0) or 0
    return nvidia_resources(built.asm["ptx"], log, built.metadata.shared, columns)


@cache
def generated_module(path: Path) -> ModuleType:
    """A generated file, imported."""
    spec = importlib.util.spec_from_file_location(f"attncompiler_offline_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
