"""The Triton kernels of a package made by ``attncompiler build``: modules of its own, cut as its manifest lists."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from attncompiler.backends.gpu_targets import Target
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.runtime.listed_tilings import ListedTilings
from attncompiler.runtime.manifest import Json, ManifestKernels
from attncompiler.runtime.triton_backward import BackwardSignature, GradientSignature
from attncompiler.runtime.triton_engine import TritonEngine
from attncompiler.runtime.triton_launch import PlanSignature, Signature
from attncompiler.runtime.triton_modules import Dims, ready_triton

__all__ = ["PackagedEngine", "PackagedKernels"]


class PackagedKernels(ManifestKernels):
    """What a manifest says of its Triton kernels."""

    backend = "triton"


class PackagedEngine(TritonEngine):
    """Runs them."""

    def __init__(self, kernels: PackagedKernels) -> None:
        super().__init__(kernels, PackagedModules(kernels))
        self.tuner = ListedTilings(kernels)


class PackagedModules:
    """The ``TritonModules`` of a package; ``language`` is that of its kernels."""

    language = "triton"
    no_eight_bits = ""

    def __init__(self, kernels: ManifestKernels) -> None:
        self.kernels = kernels
        self.signature: Signature = read(Signature, kernels.manifest["program"][self.language])

    def forward(self, dims: Dims, types: Mapping[str, str]) -> ModuleType:
        """The forward kernel. Raises NotBuiltError."""
        return _imported(self.kernels.find("forward", dims, types))

    def backward(
        self, dims: Dims, types: Mapping[str, str], wanted: frozenset[str]
    ) -> tuple[BackwardSignature, ModuleType]:
        """The kernels with the fewest gradients besides those of ``wanted``, and what they take."""
        kernel = self.kernels.find("backward", dims, types, wanted)
        return self.signature_of(kernel), _imported(kernel)

    def signature_of(self, kernel: Json) -> BackwardSignature:
        """What the kernels of a backward take."""
        grads = tuple(GradientSignature(**g) for g in kernel["signature"]["grads"])
        signature: BackwardSignature = read(
            BackwardSignature, {**kernel["signature"], "grads": grads}
        )
        return signature

    def plan(self, dims: Dims, types: Mapping[str, str]) -> tuple[PlanSignature, ModuleType]:
        """The kernel that lists tiles, and what it takes."""
        kernel = self.kernels.find("tiles", dims, types)
        return read(PlanSignature, kernel["signature"]), _imported(kernel)

    def configs(
        self, kind: Kind, target: Target, dims: Dims, wanted: frozenset[str] = frozenset()
    ) -> Sequence[Config]:
        """What the manifest lists for a target."""
        file = "forward" if kind == "forward" else "backward"
        kernel = self.kernels.find(file, dims, {}, wanted)
        return [Config(*config) for config in kernel["tiles"][kind][target.name]]


def read(cls: Any, data: Json) -> Any:
    """A signature, whose lists have become tuples again."""
    return cls(**{name: frozen(x) for name, x in data.items()})


def frozen(x: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(frozen, x)) if isinstance(x, list | tuple) else x


def _imported(kernel: Json) -> ModuleType:
    """A kernel's file as a module of the package, for which Triton reads its source. Raises MissingTritonError."""
    ready_triton()
    package = (__package__ or "").rsplit(".", 2)[0]
    return importlib.import_module(
        f"{package}.{kernel['file'].removesuffix('.py').replace('/', '.')}"
    )
