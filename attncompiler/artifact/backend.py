"""What a backend gives to a package: kernels as sources, what the manifest says of them, the modules that run them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from attncompiler.artifact.specialize import Wanted
from attncompiler.runtime.building import BuiltKernel

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation


@dataclass(frozen=True, slots=True)
class PackagedKernel:
    """One kernel: its path in the package, its source, its entry in the manifest, and the library built of it here.

    ``more`` are the paths and sources of the same kernel as tuning cut it.

    ``ManifestKernels.find`` (``runtime/manifest.py``) chooses by the entry's ``backend``, ``kind`` (forward, backward,
    tiles), ``dtype``, ``head_dim``, ``value_dim``, ``tensors`` (types by name) and ``wanted`` (those with gradients).
    """

    path: str
    source: str
    entry: dict[str, Any]
    built: BuiltKernel | None = None
    more: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        backend: str,
        kind: str,
        file: str,
        source: str,
        dims: tuple[str, int, int],
        tensors: dict[str, str],
        *,
        wanted: Sequence[str] = (),
        built: BuiltKernel | None = None,
        **more: object,
    ) -> PackagedKernel:
        """A kernel for inputs of ``dims``, in ``file`` of the package's kernels; ``more`` follows in the entry."""
        dtype, head_dim, value_dim = dims
        path = f"kernels/{file}"
        entry = {
            "backend": backend,
            "kind": kind,
            "file": path,
            "sha256": hashlib.sha256(source.encode()).hexdigest(),
            "dtype": dtype,
            "head_dim": head_dim,
            "value_dim": value_dim,
            "tensors": tensors,
            "wanted": list(wanted),
            **more,
        }
        return cls(path, source, entry, built)


class MakesKernels(Protocol):
    """``Backend.kernels``."""

    def __call__(
        self, compilation: Compilation, wanted: Sequence[Wanted], *, backward: bool
    ) -> Iterator[PackagedKernel]:
        """The kernels of a package, each built when it is asked for."""


class DescribesProgram(Protocol):
    """``Backend.program``."""

    def __call__(
        self, compilation: Compilation, wanted: Sequence[Wanted], *, backward: bool
    ) -> dict[str, Any]:
        """What the manifest says of the program: ``ManifestKernels`` reads it."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend.

    ``runtime/packaged_<name>.py`` is its ``PackagedKernels``. ``device`` is where its kernels run, ``needs`` what a
    package needs for them besides torch, in words, ``libraries`` what its ``modules`` may import besides Python's own.
    """

    name: str
    device: str
    needs: str
    libraries: frozenset[str]
    modules: tuple[str, ...]
    kernels: MakesKernels
    program: DescribesProgram
