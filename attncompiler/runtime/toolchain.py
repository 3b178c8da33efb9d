"""Turns a C++ source into a shared library with the machine's own compiler.

``$CXX`` chooses the compiler; ``$ATTNCOMPILER_CXXFLAGS`` adds flags after ours, so that it can narrow the instruction
set: ``-mno-amx-tile`` (no tile registers), ``-mno-avx512f`` (AVX2) or ``-march=x86-64`` (SSE2). Both are part of a
build's key in the cache.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from attncompiler.runtime.errors import CompilerFailedError, MissingCompilerError

# Not -ffast-math: it would break the rounding trick of the exponentials and the meaning of infinities.
OPTIMISATION = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math")
EXACTNESS = ("-ffp-contract=fast", "-fno-strict-aliasing")
LIBRARY = ["-fPIC", "-fvisibility=hidden", "-Wno-psabi"]


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A C++ compiler and the flags that fit this machine."""

    command: tuple[str, ...]
    identity: str
    flags: tuple[str, ...]

    @property
    def key(self) -> str:
        """Everything about the compiler and the processor that can change a build."""
        return "\n".join((self.identity, " ".join(self.flags), processor()))

    def build(self, variant: str, source: Path, library: Path) -> None:
        """Compile ``source`` to ``library``; raises CompilerFailedError with the compiler's words."""
        compiled = source.with_suffix(".o")
        self._run(variant, source, [*self.flags, "-c", str(source), "-o", str(compiled)])
        # The OpenMP symbols stay open: at load they bind to the runtime that torch has already brought in, so
        # the process keeps one pool of threads.
        self._run(variant, source, ["-shared", str(compiled), "-o", str(library)])
        compiled.unlink()

    def _run(self, variant: str, source: Path, arguments: list[str]) -> None:
        command = [*self.command, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise MissingCompilerError(
                detail=f"{command[0]} does not start: {error.strerror}"
            ) from error
        if done.returncode == 0:
            return
        # A folder of its own: another user or process may be failing at the same moment.
        kept = Path(tempfile.mkdtemp(prefix="attncompiler-")) / source.name
        shutil.copyfile(source, kept)
        raise CompilerFailedError(
            compiler=self.command[0],
            variant=variant,
            output=(done.stderr or done.stdout or f"it ended with status {done.returncode}")[:4000],
            source=kept,
        )


def find_toolchain() -> Toolchain:
    """The compiler ``$CXX`` names, else g++, clang++ or c++. Raises MissingCompilerError."""
    names = ("CXX", "PATH", "ATTNCOMPILER_CXXFLAGS")
    return _toolchain(*(os.environ.get(name, "") for name in names))


@cache
def _toolchain(chosen: str, path: str, extra: str) -> Toolchain:
    if chosen:
        command = tuple(shlex.split(chosen))
        found = shutil.which(command[0], path=path)
        if found is None:
            raise MissingCompilerError(detail=f"CXX is {chosen!r}, which is not a program")
    else:
        found = next(
            (w for n in ("g++", "clang++", "c++") if (w := shutil.which(n, path=path))), None
        )
        if found is None:
            raise MissingCompilerError(detail="tried g++, clang++ and c++")
        command = (found,)
    native = "-mcpu=native" if platform.machine() in ("arm64", "ppc64le") else "-march=native"
    refused = () if tiles_are_lent() else ("-mno-amx-tile",)
    flags = (*OPTIMISATION, *EXACTNESS, native, *refused, *LIBRARY, *_openmp(), *shlex.split(extra))
    stat = Path(found).resolve().stat()
    identity = f"{' '.join(command)} {Path(found).resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return Toolchain((found, *command[1:]), identity, flags)


def _openmp() -> tuple[str, ...]:
    # Apple's compiler takes the pragma only through its preprocessor and ships no runtime of its own.
    return ("-Xpreprocessor", "-fopenmp") if platform.system() == "Darwin" else ("-fopenmp",)


ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64


@cache
def tiles_are_lent() -> bool:
    """False where the processor has tile registers and the system does not let this process use them."""
    has_tiles = platform.system() == "Linux" and " amx_tile " in f"{processor()} "
    if not has_tiles or platform.machine() != "x86_64":
        return True
    return bool(ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0)


@cache
def processor() -> str:
    """The processor's model and instruction sets, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = info.read_text().split("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.split("\t")[0].strip(" :") in wanted)
    return f"{platform.machine()} {platform.processor()}"
