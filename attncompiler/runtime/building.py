"""Turns the source of a kernel into a library on disk: found in the user's cache, or made there by the compiler."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from attncompiler.runtime.cache import content_key, entry
from attncompiler.runtime.toolchain import find_toolchain

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """A kernel on disk: its readable source, its library, and how long each stage took (seconds).

    ``cached`` says that the library was found in the cache: no compiler ran.
    """

    path_source: Path
    path_library: Path
    seconds: dict[str, float]
    cached: bool


def build(name: str, suffix: str, print_source: Callable[[], str]) -> BuiltKernel:
    """The kernel of variant ``name`` whose source ``print_source()`` gives; ``suffix`` tells its kind in the cache.

    Raises MissingCompilerError, CompilerFailedError and CacheError.
    """
    clock = time.perf_counter()
    source = print_source()
    printed = time.perf_counter() - clock
    toolchain = find_toolchain()

    def fill(folder: Path) -> None:
        (folder / "kernel.cpp").write_text(source)
        toolchain.build(name, folder / "kernel.cpp", folder / "kernel.so")

    clock = time.perf_counter()
    stem = f"{name.lower()}_{suffix}"
    folder, cached = entry(stem, content_key(source, toolchain.key), fill)
    seconds = {"print": printed, "compile": time.perf_counter() - clock}
    return BuiltKernel(folder / "kernel.cpp", folder / "kernel.so", seconds, cached)


def loaded(make: Callable[[], BuiltKernel], load: Callable[[Path], T]) -> T:
    """``load`` of the library that ``make`` builds."""
    try:
        return load(make().path_library)
    except OSError:  # somebody emptied the cache between building and loading
        return load(make().path_library)
