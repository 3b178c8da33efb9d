"""Builds what one compilation can run: forward and backward kernels, each found in the cache or made."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from attncompiler.backends.cpp import Specialization, render, render_backward, render_tile_plan
from attncompiler.backends.cpp_backward_printer import value_source
from attncompiler.frontend import definition_of
from attncompiler.ir.backward import Backward
from attncompiler.ir.gradient import Gradient
from attncompiler.ir.printer import print_program
from attncompiler.runtime.building import BuiltKernel as BuiltKernel
from attncompiler.runtime.building import build, loaded
from attncompiler.runtime.call_checks import ELEMENT_TYPES
from attncompiler.runtime.description import backward_signature, forward_signature, plan_signature
from attncompiler.runtime.library import BackwardLibrary, Library
from attncompiler.runtime.signature import BackwardSignature
from attncompiler.runtime.tile_tables import PlanLibrary, TileTables

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation

T = TypeVar("T")


class Kernels:
    """The kernels of one compilation; every method may be called from several threads."""

    def __init__(self, compilation: Compilation) -> None:
        self.compilation = compilation
        self.kernel = compilation.kernel
        self.name = compilation.plan.program.name
        self.signature = forward_signature(self.kernel)
        self.kept = self.signature.kept
        self.dot_factor = compilation.plan.program.dot_factor
        self._libraries: dict[Specialization, Library] = {}
        self._backward_libraries: dict[
            tuple[Specialization, frozenset[str]], tuple[BackwardSignature, BackwardLibrary]
        ] = {}
        self._tables: dict[tuple[str, ...], TileTables] = {}
        self._loops: dict[frozenset[str], Backward] = {}
        self._gradient: Gradient | None = None
        self._lock = threading.RLock()

    @property
    def identity(self) -> str:
        """What tells programs apart."""
        return print_program(self.compilation.plan.program)

    @property
    def gradient(self) -> Gradient:
        """The derived backward; made when a call first needs it."""
        with self._lock:
            if self._gradient is None:
                self._gradient = apart(lambda: self.compilation.gradient)
            return self._gradient

    @property
    def learns(self) -> frozenset[str]:
        """The captured tensors whose gradient is not 0 everywhere."""
        return frozenset(t.tensor for t in self.gradient.tensors)

    @property
    def saved(self) -> tuple[str, ...]:
        """The statistics of the forward that its backward reads."""
        return self.gradient.saved

    @property
    def reads_value(self) -> bool:
        """Whether the backward reads the output row before the epilogue."""
        return self.gradient.reads_value

    def saves_value(self, dtype: torch.dtype) -> bool:
        """Whether the backward of a type reads an output row before the epilogue that is not the output itself."""
        return value_source(self.gradient, ELEMENT_TYPES[dtype]) == "real"

    def forward(self, dims: tuple[str, int, int], types: tuple[str, ...]) -> Library:
        """The loaded forward kernel for an element type, head_dim and value_dim, and types of captured tensors."""
        spec = Specialization(*dims, types)
        library = self._libraries.get(spec)
        if library is None:
            library = loaded(lambda: self.build(spec), lambda p: Library(p, self.signature))
            self._libraries[spec] = library
        return library

    def backward(
        self, tensors: Mapping[str, str], dims: tuple[str, int, int], wanted: frozenset[str]
    ) -> tuple[BackwardSignature, BackwardLibrary]:
        """The signature and the loaded kernel of the backward that gives gradients to the tensors in ``wanted``.

        ``dims`` are the element type, head_dim and value_dim, ``tensors`` the types of captured tensors by name.
        """
        loops = self.loops(wanted)
        spec = Specialization(*dims, tuple(tensors[t.name] for t in loops.tensors))
        found = self._backward_libraries.get((spec, wanted))
        if found is None:
            signature = backward_signature(loops)
            library = loaded(
                lambda: self.build_backward(spec, wanted), lambda p: BackwardLibrary(p, signature)
            )
            found = self._backward_libraries[spec, wanted] = signature, library
        return found

    def loops(self, wanted: frozenset[str]) -> Backward:
        """The backward that gives gradients to the tensors in ``wanted``, as loops."""
        with self._lock:
            if wanted not in self._loops:
                self._loops[wanted] = apart(lambda: self.compilation.backward(wanted))
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
            signature = plan_signature(plan)
            library = loaded(lambda: self.build_planner(spec), lambda p: PlanLibrary(p, signature))
            found = self._tables.setdefault(key, TileTables(library))
        return found

    def build_planner(self, spec: Specialization) -> BuiltKernel:
        """The planning kernel on disk; ``spec`` gives the types of the tensors that the plan reads."""
        return build(self.name, "tiles", lambda: self.planner_source(spec))

    def planner_source(self, spec: Specialization) -> str:
        """The C++ source of the planning kernel."""
        title = f"{self.name}: which tiles are empty, partial and full, generated by attncompiler."
        return render_tile_plan(
            self.compilation.tile_plan, spec, title, definition_of(self.compilation.trace)
        )

    def build(self, spec: Specialization) -> BuiltKernel:
        """The forward kernel of a specialization on disk."""
        return build(self.name, f"{spec.dtype}_d{spec.head_dim}", lambda: self.source(spec))

    def build_backward(self, spec: Specialization, wanted: frozenset[str]) -> BuiltKernel:
        """The backward kernel of a specialization on disk."""
        suffix = f"backward_{spec.dtype}_d{spec.head_dim}"
        return build(self.name, suffix, lambda: self.backward_source(spec, wanted))

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


def apart(derive: Callable[[], T]) -> T:
    """``derive()`` in a thread of its own: the caller's may be a tracer's, in whose modes torch computes nothing."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(derive).result()


def _file_of(cls: type) -> str:
    try:
        return Path(inspect.getsourcefile(cls) or "variant.py").name
    except (OSError, TypeError):  # a class made at a prompt
        return "variant.py"
