"""Turns pieces of the C++ templates into small libraries that tests call on arrays of numbers."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attncompiler.backends import cpp
from attncompiler.runtime.cache import content_key, entry
from attncompiler.runtime.toolchain import find_toolchain

# What ATTNCOMPILER_CXXFLAGS may add: the widest instruction set here, AVX-512 without tile registers, AVX2, and what
# every x86-64 machine has.
BUILDS = {"native": "", "vectors": "-mno-amx-tile", "avx2": "-mno-avx512f", "sse2": "-march=x86-64"}
REALS = {"float": np.float32, "double": np.float64}

Array = np.ndarray


def has_tiles() -> bool:
    """Whether builds for this machine multiply with tile registers."""
    info = Path("/proc/cpuinfo")
    known = info.is_file() and "amx_bf16" in info.read_text().split()
    toolchain = find_toolchain()
    probe = [*toolchain.command, *toolchain.flags, "-dM", "-E", "-x", "c++", os.devnull]
    done = subprocess.run(probe, capture_output=True, text=True, check=True)
    return known and "__AMX_BF16__" in done.stdout


def runs_here(build: str) -> bool:
    """Whether this machine executes a build's instructions (and its compiler knows its flags)."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    tiles = has_tiles()  # without them, "vectors" is what "native" is
    return {"native": True, "vectors": tiles, "avx2": "avx2" in flags, "sse2": "sse2" in flags}[
        build
    ]


@dataclass(frozen=True)
class Function:
    """One exported C++ function: ``code`` is its body's expression over the named, typed arguments."""

    name: str
    code: str
    arguments: tuple[tuple[str, str], ...]  # (C++ type, name)
    result: str


def library(
    real: str, build: str, functions: Sequence[Function]
) -> dict[str, Callable[..., Array]]:
    """Compile the functions over the lanes of ``real``; each takes and gives arrays (any length that fits lanes)."""
    calls = "\n".join(_export(f) for f in functions)
    lanes = (
        cpp._environment()
        .get_template("lanes.h.j2")
        .render(real=real, types={"bfloat16", "float16", "bool8"})
    )
    text = "#include <stdint.h>\n#include <stdlib.h>\n#include <string.h>\nnamespace kernel {\n"
    text += f"{lanes}\n{cpp._math_for(lanes + calls, real)}\n"
    text += f'}}\nusing namespace kernel;\nextern "C" {{\n{calls}\n}}\n'
    found = find_toolchain()
    extra = (*BUILDS[build].split(), "-fvisibility=default", "-Wall", "-Wextra")
    toolchain = replace(found, flags=(*found.flags, *extra, "-Wno-unused-function"))

    def fill(folder: Path) -> None:
        (folder / "harness.cpp").write_text(text)
        toolchain.build("harness", folder / "harness.cpp", folder / "harness.so")

    folder, _ = entry(f"harness_{real}_{build}", content_key(text, toolchain.key), fill)
    loaded = ctypes.CDLL(str(folder / "harness.so"))
    return {f.name: functools.partial(_call, loaded, f, real) for f in functions}


TYPES = {"vreal": "real", "vint": "lane_int", "vwide": "int64_t"}


def _export(function: Function) -> str:
    types = [TYPES.get(t, t) for t, _ in function.arguments]
    parameters = ", ".join(
        f"const {t}* in_{n}" for t, (_, n) in zip(types, function.arguments, strict=True)
    )
    result = TYPES.get(function.result, function.result)
    vectors = any(t in TYPES for t in (function.result, *(t for t, _ in function.arguments)))
    loads = "".join(
        f"    {t} {n}; memcpy((void*)&{n}, in_{n} + i, sizeof {n});\n"
        for t, n in function.arguments
    )
    return (
        f"void {function.name}({parameters}, {result}* out, long n) {{\n"
        f"  for (long i = 0; i < n; i += {'VL' if vectors else '1'}) {{\n{loads}"
        f"    const {function.result} result = {function.code};\n"
        f"    memcpy((void*)(out + i), (const void*)&result, sizeof result);\n  }}\n}}"
    )


def _call(loaded: ctypes.CDLL, function: Function, real: str, *values: Array) -> Array:
    """Pads the arrays to whole vectors by repeating the last number."""
    size = len(values[0])
    room = -(-size // 64) * 64
    kinds = {
        "real": REALS[real],
        "lane_int": np.int32 if real == "float" else np.int64,
        "int64_t": np.int64,
        "long long": np.int64,
        "bool": np.bool_,
    }
    inputs = []
    for (kind, _), value in zip(function.arguments, values, strict=True):
        dtype = kinds[TYPES.get(kind, kind)]
        exact = np.asarray(value).astype(dtype)
        assert np.array_equal(exact, value, equal_nan=exact.dtype.kind == "f"), (
            "does not fit the lane"
        )
        inputs.append(
            np.ascontiguousarray(np.concatenate([exact, np.repeat(exact[-1:], room - size)]))
        )
    out = np.zeros(room, kinds[TYPES.get(function.result, function.result)])
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (*inputs, out)]
    getattr(loaded, function.name)(*pointers, ctypes.c_long(room))
    return out[:size]
