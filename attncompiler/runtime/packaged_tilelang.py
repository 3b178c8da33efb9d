"""The TileLang kernels of a package made by ``attncompiler build``: binaries that it carries, launched by the driver.

Where TileLang is installed it builds, from the same files, what the package has no binary for: another GPU, other
tiles, a call with other optional results. Tiles are listed by a kernel of Triton, for the masks that need lists.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from attncompiler.backends.gpu_targets import Target
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.runtime.carried_binaries import best_for, capability_of
from attncompiler.runtime.cuda_driver import cuda_driver
from attncompiler.runtime.errors import MissingBinaryError
from attncompiler.runtime.listed_tilings import ListedTilings
from attncompiler.runtime.manifest import Json, ManifestKernels
from attncompiler.runtime.packaged_triton import PackagedModules, frozen
from attncompiler.runtime.tilelang_binary import BinaryKernel
from attncompiler.runtime.tilelang_file import KernelArguments, TilelangFile
from attncompiler.runtime.tilelang_launch import Kernel, TilelangModule, capability, ready_tilelang
from attncompiler.runtime.triton_backward import BackwardSignature
from attncompiler.runtime.triton_engine import TritonEngine
from attncompiler.runtime.triton_modules import Dims

__all__ = ["PackagedEngine", "PackagedKernels"]

# What a call asks for by a constant of its kernels, in words, and what else to do than to install TileLang.
_ASKED: dict[str, tuple[str, str]] = {
    "LONG": (
        "tensors whose last element lies further than 2**31 elements away",
        "split the batch",
    ),
    "POSITIVE": ("a scale that is not positive", "negate q instead"),
    "LISTED": ("tiles from lists, for parameters beyond 2**31", "pass smaller integers"),
    "REGISTERS": (
        "empty tensors, or rows of q, k, v or a gradient that do not begin at multiples of 16 bytes",
        "make tensors contiguous",
    ),
}


class PackagedKernels(ManifestKernels):
    """What a manifest says of its TileLang kernels."""

    backend = "tilelang"


class PackagedEngine(TritonEngine):
    """Runs them."""

    def __init__(self, kernels: PackagedKernels) -> None:
        super().__init__(kernels, PackagedTilelang(kernels), "tilelang")
        self.tuner = ListedTilings(kernels)


class PackagedTilelang(PackagedModules):
    """The ``TritonModules`` of a package with kernels in TileLang."""

    language = "tilelang"
    no_eight_bits = "inputs of 8 bits are not supported by the tilelang backend"

    def __init__(self, kernels: PackagedKernels) -> None:
        super().__init__(kernels)
        self._modules: dict[tuple[object, ...], TilelangModule] = {}

    def forward(self, dims: Dims, types: Mapping[str, str]) -> ModuleType:
        """The forward kernel. Raises NotBuiltError."""
        return self._module(self.kernels.find("forward", dims, types))

    def backward(
        self, dims: Dims, types: Mapping[str, str], wanted: frozenset[str]
    ) -> tuple[BackwardSignature, ModuleType]:
        """The kernels with the fewest gradients besides those of ``wanted``, and what they take."""
        kernel = self.kernels.find("backward", dims, types, wanted)
        return self.signature_of(kernel), self._module(kernel)

    def configs(
        self, kind: Kind, target: Target, dims: Dims, wanted: frozenset[str] = frozenset()
    ) -> Sequence[Config]:
        """What the manifest lists for a target; without TileLang those of the binaries that run there.

        Raises MissingBinaryError where there are none.
        """
        file = "forward" if kind == "forward" else "backward"
        kernel = self.kernels.find(file, dims, {}, wanted)
        if find_spec("tilelang") is not None:
            return super().configs(kind, target, dims, wanted)
        arch = best_for(architectures(kernel), capability_of(target.name) or (0, 0))
        if not arch:
            raise missing(self.kernels, kernel, kind, target.name)
        first, *others = (Config(*config) for config in kernel["tiles"][kind][arch])
        return [first, *(c for c in others if c.alike == first.alike)]

    def _module(self, kernel: Json) -> ModuleType:
        key = kernel["file"], kernel["dtype"], tuple(kernel["tensors"].items())
        found = self._modules.get(key)
        if found is None:
            origin = Carried(self.kernels, kernel)
            found = self._modules.setdefault(key, TilelangModule(file_of(kernel), origin))
        return found  # type: ignore[return-value]


class Carried:
    """The ``Origin`` of kernels of a package: binaries, and a file for TileLang where that is installed."""

    def __init__(self, kernels: ManifestKernels, kernel: Json) -> None:
        self._kernels, self._kernel = kernels, kernel
        self.source = (kernels.folder / kernel["file"]).read_text(encoding="utf-8")
        self._loaded: dict[str, BinaryKernel] = {}

    def make(self, name: str) -> Callable[..., Any]:
        """The function of the file that traces a kernel."""
        ready_tilelang()
        package = (__package__ or "").rsplit(".", 2)[0]
        file = self._kernel["file"].removesuffix(".py").replace("/", ".")
        found: Callable[..., Any] = getattr(importlib.import_module(f"{package}.{file}"), name)
        return found

    def carried(
        self, name: str, constants: Mapping[str, Any], device: torch.device
    ) -> Kernel | None:
        """The binary for a device and constants; None where TileLang can build one. Raises MissingBinaryError."""
        if torch.version.hip:
            able = arch = ""
        else:
            able = "sm_{}{}".format(*capability(device))
            arch = best_for(architectures(self._kernel), capability(device))
        of_kernel = [
            b
            for b in self._kernel["binaries"]
            if b["binary"] and (b["arch"], b["kernel"]) == (arch, name)
        ]
        binary = chosen(of_kernel, constants)
        if binary is not None:
            return self._binary(binary)
        if find_spec("tilelang") is not None:
            return None
        if not of_kernel:
            raise missing(self._kernels, self._kernel, name, able or "a device of AMD")
        raise differing(name, of_kernel, constants)

    def _binary(self, binary: Json) -> BinaryKernel:
        """A binary that is loaded once, when it is first launched."""
        path: str = binary["binary"]
        found = self._loaded.get(path)
        if found is None:
            folder = self._kernels.folder
            launch = json.loads((folder / binary["launch"]).read_text(encoding="utf-8"))
            made = BinaryKernel(cuda_driver(), (folder / path).read_bytes(), launch)
            found = self._loaded.setdefault(path, made)
        return found


def chosen(binaries: Sequence[Json], constants: Mapping[str, Any]) -> Json | None:
    """The binary made for these constants.

    A call that wants no gradient of q has the kernel that computes it, whose result nobody reads.
    """
    tried = [dict(constants)]
    if "ALONE" not in constants and constants.get("FUSED"):
        tried.append({**constants, "FUSED": False})
    for wanted in tried:
        for binary in binaries:
            if {name: frozen(x) for name, x in binary["constants"].items()} == wanted:
                return binary
    return None


def architectures(kernel: Json) -> list[str]:
    """Those that a kernel of a manifest has binaries for, each once."""
    return list(dict.fromkeys(b["arch"] for b in kernel["binaries"] if b["binary"]))


def missing(kernels: ManifestKernels, kernel: Json, name: str, device: str) -> MissingBinaryError:
    """A package without a binary for a GPU."""
    known = architectures(kernel)
    has = f"it has those for {', '.join(known)}" if known else "it has none"
    why = [b["why"] for b in kernel["binaries"] if b["why"]]
    command = f"{kernels.manifest['command']} --arch {device}"
    return MissingBinaryError(
        kernel=name,
        asked=device,
        known="; ".join([has, *dict.fromkeys(why)]),
        fix=f"install it: pip install tilelang; or build the package anew with nvcc: {command}",
    )


def differing(
    name: str, binaries: Sequence[Json], constants: Mapping[str, Any]
) -> MissingBinaryError:
    """A package whose binaries for a GPU are for calls with other options: says which one asked for another."""
    sets = [{n: frozen(x) for n, x in b["constants"].items()} for b in binaries]
    nearest = min(sets, key=lambda known: sum(known[n] != x for n, x in constants.items()))
    differ = [n for n, x in constants.items() if nearest[n] != x]
    option = next((n for n in differ if n in _ASKED), "")
    asked, instead = _ASKED.get(option, ("", ""))
    told = ", ".join(f"{n} {constants[n]} instead of {nearest[n]}" for n in differ)
    return MissingBinaryError(
        kernel=name,
        asked=asked or "a call with other constants",
        known=f"the nearest one differs in {told}",
        fix="install it: pip install tilelang" + (f"; or {instead}" if instead else ""),
    )


def file_of(kernel: Json) -> TilelangFile:
    """What the manifest says of a kernel's file."""
    said = kernel["module"]
    kernels = {
        name: KernelArguments(**{field: tuple(words) for field, words in taken.items()})
        for name, taken in said["kernels"].items()
    }
    return TilelangFile(**{**said, "kernels": kernels})
