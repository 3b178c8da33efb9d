"""Builds what one compilation can run: forward and backward kernels, each found in the cache or made."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from attncompiler.backends.cpp import Specialization, render, render_backward, render_tile_plan
from attncompiler.backends.cpp_backward_printer import value_source
from attncompiler.frontend import definition_of
from attncompiler.ir.backward import Backward
from attncompiler.ir.gradient import Gradient
from attncompiler.runtime.backward_plan import signature_of
from attncompiler.runtime.cache import content_key, entry
from attncompiler.runtime.call_checks import ELEMENT_TYPES
from attncompiler.runtime.library import BackwardLibrary, Library, Signature
from attncompiler.runtime.tile_tables import PlanLibrary, TileTables
from attncompiler.runtime.toolchain import find_toolchain

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation

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


class Kernels:
    """The kernels of one compilation; every method may be called from several threads."""

    def __init__(self, compilation: Compilation) -> None:
        self.compilation = compilation
        self.kernel = compilation.kernel
        self.name = compilation.plan.program.name
        self.kept = tuple(name for name, _ in self.kernel.finish.kept)
        self._signature = Signature(
            tuple(p.kind for p in self.kernel.params),
            tuple(len(t.axes) for t in self.kernel.tensors),
            len(self.kept),
            len(self.kernel.plan.stats),
            self.kernel.planned,
        )
        self._libraries: dict[Specialization, Library] = {}
        self._backward_libraries: dict[tuple[Specialization, frozenset[str]], BackwardLibrary] = {}
        self._tables: dict[tuple[str, ...], TileTables] = {}
        self._loops: dict[frozenset[str], Backward] = {}
        self._gradient: Gradient | None = None
        self._lock = threading.RLock()

    @property
    def gradient(self) -> Gradient:
        """The derived backward; made when a call first needs it."""
        with self._lock:
            if self._gradient is None:
                self._gradient = _apart(lambda: self.compilation.gradient)
            return self._gradient

    @property
    def learns(self) -> frozenset[str]:
        """The captured tensors whose gradient is not 0 everywhere."""
        return frozenset(t.tensor for t in self.gradient.tensors)

    @property
    def saved(self) -> tuple[str, ...]:
        """The statistics of the forward that its backward reads."""
        return self.gradient.saved

    def saves_value(self, dtype: torch.dtype) -> bool:
        """Whether the backward of a type reads an output row before the epilogue that is not the output itself."""
        return value_source(self.gradient, ELEMENT_TYPES[dtype]) == "real"

    def forward(self, spec: Specialization) -> Library:
        """The loaded forward kernel of a specialization."""
        library = self._libraries.get(spec)
        if library is None:
            library = _loaded(lambda: self.build(spec), lambda p: Library(p, self._signature))
            self._libraries[spec] = library
        return library

    def backward(
        self, tensors: Mapping[str, str], dims: tuple[str, int, int], wanted: frozenset[str]
    ) -> tuple[Backward, BackwardLibrary]:
        """The loops and the loaded kernel of the backward that gives gradients to the tensors in ``wanted``.

        ``dims`` are the element type, head_dim and value_dim, ``tensors`` the types of captured tensors by name.
        """
        loops = self.loops(wanted)
        spec = Specialization(*dims, tuple(tensors[t.name] for t in loops.tensors))
        library = self._backward_libraries.get((spec, wanted))
        if library is None:
            signature = signature_of(loops)
            library = _loaded(
                lambda: self.build_backward(spec, wanted), lambda p: BackwardLibrary(p, signature)
            )
            self._backward_libraries[spec, wanted] = library
        return loops, library

    def loops(self, wanted: frozenset[str]) -> Backward:
        """The backward that gives gradients to the tensors in ``wanted``, as loops."""
        with self._lock:
            if wanted not in self._loops:
                self._loops[wanted] = _apart(lambda: self.compilation.backward(wanted))
            return self._loops[wanted]

    def tables(self, dtype: str, types: Mapping[str, str]) -> TileTables | None:
        """What finds the states of tiles for a call; None for a mask that kernels decide by themselves.

        ``dtype`` is the element type of the inputs, ``types`` those of captured tensors by name.
        """
        return self.planner(dtype, types) if self.kernel.planned else None

    def planner(self, dtype: str, types: Mapping[str, str]) -> TileTables:
        """The planning kernel of the mask, with the tables it has made."""
        plan = self.compilation.tile_plan
        real = "float64" if dtype == "float64" else "float32"
        spec = Specialization(real, 1, 1, tuple(types[t.name] for t in plan.tensors))
        key = (real, *spec.tensors)
        found = self._tables.get(key)
        if found is None:
            library = _loaded(lambda: self.build_planner(spec), lambda p: PlanLibrary(p, plan))
            found = self._tables.setdefault(key, TileTables(library))
        return found

    def build_planner(self, spec: Specialization) -> BuiltKernel:
        """The planning kernel on disk; ``spec`` gives the types of the tensors that the plan reads."""
        return self._built("tiles", lambda: self.planner_source(spec))

    def planner_source(self, spec: Specialization) -> str:
        """The C++ source of the planning kernel."""
        title = f"{self.name}: which tiles are empty, partial and full, generated by attncompiler."
        return render_tile_plan(
            self.compilation.tile_plan, spec, title, definition_of(self.compilation.trace)
        )

    def build(self, spec: Specialization) -> BuiltKernel:
        """The forward kernel of a specialization on disk."""
        return self._built(f"{spec.dtype}_d{spec.head_dim}", lambda: self.source(spec))

    def build_backward(self, spec: Specialization, wanted: frozenset[str]) -> BuiltKernel:
        """The backward kernel of a specialization on disk."""
        suffix = f"backward_{spec.dtype}_d{spec.head_dim}"
        return self._built(suffix, lambda: self.backward_source(spec, wanted))

    def backward_source(self, spec: Specialization, wanted: frozenset[str]) -> str:
        """The C++ source of a backward kernel."""
        title = f"{self.name}: fused attention backward, {spec.dtype}, head_dim {spec.head_dim}"
        return render_backward(
            self.loops(wanted),
            spec,
            title=f"{title}, value_dim {spec.value_dim}, generated by attncompiler.",
            definition=definition_of(self.compilation.trace),
            regenerate=self._command(spec, " --backward"),
        )

    def source(self, spec: Specialization) -> str:
        """The C++ source of a forward kernel."""
        title = f"{self.name}: fused attention forward, {spec.dtype}, head_dim {spec.head_dim}"
        return render(
            self.kernel,
            spec,
            title=f"{title}, value_dim {spec.value_dim}, generated by attncompiler.",
            definition=definition_of(self.compilation.trace),
            regenerate=self._command(spec),
        )

    def command(self, options: str) -> str:
        """What prints a source again."""
        if self.compilation.trace.origin:
            return self.compilation.trace.origin
        cls = type(self.compilation.trace.variant)
        return f"attncompiler build {_file_of(cls)} --name {cls.__name__} {options}"

    # -- inside ------------------------------------------------------------------------------------------------

    def _command(self, spec: Specialization, flag: str = "") -> str:
        options = f"--dtype {spec.dtype} --head-dim {spec.head_dim} --value-dim {spec.value_dim}"
        return self.command(f"{options}{flag}")

    def _built(self, suffix: str, print_source: Callable[[], str]) -> BuiltKernel:
        clock = time.perf_counter()
        source = print_source()
        printed = time.perf_counter() - clock
        toolchain = find_toolchain()

        def fill(folder: Path) -> None:
            (folder / "kernel.cpp").write_text(source)
            toolchain.build(self.name, folder / "kernel.cpp", folder / "kernel.so")

        clock = time.perf_counter()
        stem = f"{self.name.lower()}_{suffix}"
        folder, cached = entry(stem, content_key(source, toolchain.key), fill)
        seconds = {"print": printed, "compile": time.perf_counter() - clock}
        return BuiltKernel(folder / "kernel.cpp", folder / "kernel.so", seconds, cached)


def _loaded(build: Callable[[], BuiltKernel], load: Callable[[Path], T]) -> T:
    try:
        return load(build().path_library)
    except OSError:  # somebody emptied the cache between building and loading
        return load(build().path_library)


def _apart(derive: Callable[[], T]) -> T:
    """``derive()`` in a thread of its own: the caller's may be a tracer's, in whose modes torch computes nothing."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(derive).result()


def real_of(dtype: torch.dtype) -> torch.dtype:
    """The type in which a kernel for inputs of ``dtype`` computes and returns row statistics."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _file_of(cls: type) -> str:
    try:
        return Path(inspect.getsourcefile(cls) or "variant.py").name
    except (OSError, TypeError):  # a class made at a prompt
        return "variant.py"
