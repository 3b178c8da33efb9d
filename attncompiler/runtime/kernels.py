"""Builds what one compilation can run: forward and backward kernels, each found in the cache or made."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from attncompiler.backends.cpp import Specialization, render, render_backward, render_tile_plan
from attncompiler.backends.cpp_backward_printer import value_source
from attncompiler.backends.cpp_cut import Schedule
from attncompiler.frontend import definition_of
from attncompiler.ir.backward import Backward
from attncompiler.ir.expr import Const
from attncompiler.ir.gradient import Gradient
from attncompiler.ir.printer import print_program
from attncompiler.runtime.building import BuiltKernel as BuiltKernel
from attncompiler.runtime.building import build, loaded
from attncompiler.runtime.call_checks import ELEMENT_TYPES
from attncompiler.runtime.description import backward_signature, forward_signature, plan_signature
from attncompiler.runtime.library import BackwardLibrary, Library
from attncompiler.runtime.signature import BackwardSignature
from attncompiler.runtime.situation import Situation
from attncompiler.runtime.tile_tables import PlanLibrary, TileTables, readable
from attncompiler.runtime.toolchain import find_toolchain
from attncompiler.tuning.winners import Winners

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation

T = TypeVar("T")

# Tiles that the density of a mask is counted in; calls whose schedule is remembered.
_MOST_TILES, _MOST_CHOICES = 1 << 16, 256


class Kernels:
    """The kernels of one compilation; every method may be called from several threads."""

    def __init__(self, compilation: Compilation) -> None:
        self.compilation = compilation
        self.kernel = compilation.kernel
        self.name = compilation.plan.program.name
        self.signature = forward_signature(self.kernel)
        self.kept = self.signature.kept
        self.dot_factor = compilation.plan.program.dot_factor
        self._libraries: dict[tuple[Specialization, Schedule | None], Library] = {}
        self._backward_libraries: dict[
            tuple[Specialization, frozenset[str], Schedule | None],
            tuple[BackwardSignature, BackwardLibrary],
        ] = {}
        self._winners: dict[object, Winners] = {}
        self._chosen: dict[object, Schedule | None] = {}
        self._fixed: tuple[Schedule | None] | None = None
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

    def forward(
        self, dims: tuple[str, int, int], types: tuple[str, ...], situation: Situation
    ) -> Library:
        """The loaded forward kernel for an element type, head_dim and value_dim, and types of captured tensors.

        It is cut as tuning found best for calls like this one, or as usual.
        """
        spec = Specialization(*dims, types)
        return self.forward_cut(spec, self._tuned(spec, None, situation))

    def forward_cut(self, spec: Specialization, tuned: Schedule | None) -> Library:
        """The loaded forward kernel, cut as usual or as ``tuned``."""
        library = self._libraries.get((spec, tuned))
        if library is None:
            library = loaded(lambda: self.build(spec, tuned), lambda p: Library(p, self.signature))
            self._libraries[spec, tuned] = library
        return library

    def backward(
        self,
        tensors: Mapping[str, str],
        dims: tuple[str, int, int],
        wanted: frozenset[str],
        situation: Situation,
    ) -> tuple[BackwardSignature, BackwardLibrary]:
        """The signature and the loaded kernel of the backward that gives gradients to the tensors in ``wanted``.

        ``dims`` are the element type, head_dim and value_dim, ``tensors`` the types of captured tensors by name.
        """
        spec = self.backward_specialization(tensors, dims, wanted)
        return self.backward_cut(spec, wanted, self._tuned(spec, wanted, situation))

    def backward_cut(
        self, spec: Specialization, wanted: frozenset[str], tuned: Schedule | None
    ) -> tuple[BackwardSignature, BackwardLibrary]:
        """The signature and the loaded kernel of a backward, cut as usual or as ``tuned``."""
        found = self._backward_libraries.get((spec, wanted, tuned))
        if found is None:
            signature = backward_signature(self.loops(wanted))
            library = loaded(
                lambda: self.build_backward(spec, wanted, tuned),
                lambda p: BackwardLibrary(p, signature),
            )
            found = self._backward_libraries[spec, wanted, tuned] = signature, library
        return found

    def backward_specialization(
        self, tensors: Mapping[str, str], dims: tuple[str, int, int], wanted: frozenset[str]
    ) -> Specialization:
        """What a backward fixes; ``tensors`` are the types of captured tensors by name."""
        return Specialization(*dims, tuple(tensors[t.name] for t in self.loops(wanted).tensors))

    # -- schedules ---------------------------------------------------------------------------------------------

    def winners(self, spec: Specialization, wanted: frozenset[str] | None) -> Winners:
        """What tuning found for the forward, or for the backward that gives gradients to ``wanted``."""
        found = self._winners.get((spec, wanted))
        if found is None:
            source = self.source(spec) if wanted is None else self.backward_source(spec, wanted)
            found = Winners(self.name, source, find_toolchain())
            self._winners[spec, wanted] = found
        return found

    def cut(self, tuned: Schedule | None) -> Kernels:
        """These kernels, every call's cut as usual or as ``tuned`` whatever the records say."""
        made = copy(self)
        made._fixed = (tuned,)
        return made

    def forget_choices(self) -> None:
        """Look for records again at the next call: tuning has written some."""
        self._chosen.clear()

    def density(self, dtype: str, situation: Situation) -> float:
        """The share of pairs that lie in visited tiles of a usual size."""
        return self.visited(dtype, situation, 64, 64)

    def visited(self, dtype: str, situation: Situation, rows: int, keys: int) -> float:
        """The share of tiles that are not empty, of so many rows and keys, or larger ones where these are too many."""
        if self.compilation.plan.program.mask is Const(True):
            return 1.0
        plan, sizes = self.compilation.tile_plan, situation.sizes
        given = {t.name: readable(situation.tensors[t.name]).cpu() for t in plan.tensors}
        types = {n: str(x.dtype).removeprefix("torch.") for n, x in given.items()}
        while (sizes.queries // rows + 1) * (sizes.keys // keys + 1) > _MOST_TILES:
            rows, keys = 2 * rows, 2 * keys
        states, _ = self.planner(dtype, types).library(
            sizes, situation.q_start, situation.params, given, (rows, keys)
        )
        return (states != 0).double().mean().item() if states.numel() else 1.0

    def _tuned(
        self, spec: Specialization, wanted: frozenset[str] | None, situation: Situation
    ) -> Schedule | None:
        if self._fixed is not None:
            return self._fixed[0]
        key = (spec, wanted, situation.sizes, situation.q_start, situation.threads)
        if key not in self._chosen:
            if len(self._chosen) >= _MOST_CHOICES:
                self._chosen.clear()
            density = partial(self.density, spec.dtype, situation)
            self._chosen[key] = self.winners(spec, wanted).find(situation, density)
        return self._chosen[key]

    # ----------------------------------------------------------------------------------------------------------

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

    def build(self, spec: Specialization, tuned: Schedule | None = None) -> BuiltKernel:
        """The forward kernel of a specialization on disk."""
        suffix = f"{spec.dtype}_d{spec.head_dim}"
        return build(self.name, suffix, lambda: self.source(spec, tuned))

    def build_backward(
        self, spec: Specialization, wanted: frozenset[str], tuned: Schedule | None = None
    ) -> BuiltKernel:
        """The backward kernel of a specialization on disk."""
        suffix = f"backward_{spec.dtype}_d{spec.head_dim}"
        return build(self.name, suffix, lambda: self.backward_source(spec, wanted, tuned))

    def backward_source(
        self, spec: Specialization, wanted: frozenset[str], tuned: Schedule | None = None
    ) -> str:
        """The C++ source of a backward kernel."""
        title = f"{self.name}: fused attention backward, {spec.dtype}, head_dim {spec.head_dim}"
        return render_backward(
            self.loops(wanted),
            spec,
            title=f"{title}, value_dim {spec.value_dim}, generated by attncompiler.",
            definition=definition_of(self.compilation.trace),
            regenerate=self._command(spec, " --backward"),
            tuned=tuned,
        )

    def source(self, spec: Specialization, tuned: Schedule | None = None) -> str:
        """The C++ source of a forward kernel."""
        title = f"{self.name}: fused attention forward, {spec.dtype}, head_dim {spec.head_dim}"
        return render(
            self.kernel,
            spec,
            title=f"{title}, value_dim {spec.value_dim}, generated by attncompiler.",
            definition=definition_of(self.compilation.trace),
            regenerate=self._command(spec),
            tuned=tuned,
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
