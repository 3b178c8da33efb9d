"""The C++ kernels of a package made by ``attncompiler build``: sources in its folder, built when a call needs them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from attncompiler.runtime.building import BuiltKernel, build, loaded
from attncompiler.runtime.launch import Launcher as PackagedEngine
from attncompiler.runtime.library import BackwardLibrary, Library
from attncompiler.runtime.manifest import Json, ManifestKernels, backward_signature, plan_signature
from attncompiler.runtime.signature import BackwardSignature
from attncompiler.runtime.situation import Situation
from attncompiler.runtime.tile_tables import PlanLibrary, TileTables

__all__ = ["PackagedEngine", "PackagedKernels"]


class PackagedKernels(ManifestKernels):
    """The C++ kernels that a manifest lists; every method may be called from several threads."""

    backend = "cpp"

    def __init__(self, folder: Path, manifest: Json) -> None:
        super().__init__(folder, manifest)
        self._forwards: dict[str, Library] = {}
        self._backwards: dict[str, tuple[BackwardSignature, BackwardLibrary]] = {}
        self._tables: dict[object, TileTables] = {}
        self._lock = threading.RLock()

    def forward(
        self, dims: tuple[str, int, int], types: tuple[str, ...], situation: Situation
    ) -> Library:
        """The loaded forward kernel for an element type, head_dim and value_dim, and types of captured tensors."""
        names = (t.name for t in self.signature.tensors)
        kernel = self.find("forward", dims, dict(zip(names, types, strict=True)))
        file = _file_for(kernel, situation)
        found = self._forwards.get(file)
        if found is None:
            found = loaded(lambda: self.build(kernel, file), lambda p: Library(p, self.signature))
            self._forwards[file] = found
        return found

    def backward(
        self,
        tensors: Mapping[str, str],
        dims: tuple[str, int, int],
        wanted: frozenset[str],
        situation: Situation,
    ) -> tuple[BackwardSignature, BackwardLibrary]:
        """The signature and the loaded kernel of the smallest backward that gives gradients to all in ``wanted``."""
        kernel = self.find("backward", dims, tensors, wanted)
        file = _file_for(kernel, situation)
        found = self._backwards.get(file)
        if found is None:
            signature = backward_signature(kernel)
            library = loaded(
                lambda: self.build(kernel, file), lambda p: BackwardLibrary(p, signature)
            )
            found = self._backwards[file] = signature, library
        return found

    def tables(self, dtype: str, types: Mapping[str, str]) -> TileTables | None:
        """What finds the states of tiles for a call; None for a mask that kernels decide by themselves."""
        if not self.signature.planned:
            return None
        real = "float64" if dtype == "float64" else "float32"
        with self._lock:
            found = self._tables.get((real, *types.items()))
            if found is None:
                kernel = self.find("tiles", (real, 1, 1), types)
                plan = plan_signature(kernel)
                file: str = kernel["file"]
                library = loaded(lambda: self.build(kernel, file), lambda p: PlanLibrary(p, plan))
                found = self._tables[real, *types.items()] = TileTables(library)
            return found

    def build(self, kernel: Json, file: str) -> BuiltKernel:
        """One of the listed kernels on disk, from one of its sources."""
        return build(self.name, kernel["entry"], (self.folder / file).read_text)


def _file_for(kernel: Json, situation: Situation) -> str:
    """The source that tuning found best for calls of these sizes, or the usual one.

    How dense the mask is, is not asked here: of several results that of the densest counts.
    """
    like = asdict(situation.bucket(1.0))
    fitting = [t for t in kernel["tuned"] if {**t["calls"], "density": like["density"]} == like]
    best = max(fitting, key=lambda t: float(t["calls"]["density"]), default=kernel)
    return str(best["file"])
