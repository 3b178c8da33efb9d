"""Prints and imports the TileLang files of one compilation. Tiles are listed by the planning kernels of Triton."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import ModuleType

from attncompiler.backends.gpu_targets import Target
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.backends.tilelang import render, render_backward
from attncompiler.backends.tilelang_configs import configs
from attncompiler.backends.tilelang_options import options
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.tilelang_file import TilelangFile, read_file
from attncompiler.runtime.tilelang_launch import TilelangModule, ready_tilelang
from attncompiler.runtime.triton_backward import BackwardSignature
from attncompiler.runtime.triton_modules import Dims
from attncompiler.runtime.triton_sources import TritonSources


class TilelangSources(TritonSources):
    """The files of one compilation, each printed and imported once."""

    language = "tilelang"
    render = staticmethod(render)
    render_backward = staticmethod(render_backward)
    no_eight_bits = "inputs of 8 bits are not supported by the tilelang backend"

    def __init__(self, kernels: Kernels) -> None:
        super().__init__(kernels)
        self._launched: dict[str, TilelangModule] = {}
        self._guard = threading.RLock()

    def backward(
        self, dims: Dims, types: Mapping[str, str], wanted: frozenset[str]
    ) -> tuple[BackwardSignature, ModuleType]:
        """The imported backward kernels, and what they take."""
        ready_tilelang()
        signature, module = super().backward(dims, types, wanted)
        return signature, self._launch(module)

    def forward(self, dims: Dims, types: Mapping[str, str]) -> ModuleType:
        """The imported forward kernel; one file holds for all ``dims``."""
        ready_tilelang()
        return self._launch(super().forward(dims, types))

    def configs(
        self, kind: Kind, target: Target, dims: Dims, wanted: frozenset[str] = frozenset()
    ) -> Sequence[Config]:
        """How a kernel may be cut on a target, the best guess first, then what tuning tries beside."""
        plain = configs(kind, target, *dims, self.extra(kind, wanted))
        return *plain, *options(kind, target, plain, apart=self._forward_file.apart(dims[0]))

    @cached_property
    def _forward_file(self) -> TilelangFile:
        """What a launch knows of the forward; the types of tensors make no difference to that."""
        return read_file(self.forward_source(["float32"] * len(self.kernels.kernel.tensors)))

    def _launch(self, module: ModuleType) -> ModuleType:
        with self._guard:
            found = self._launched.get(module.__name__)
            if found is None:
                found = self._launched[module.__name__] = TilelangModule.of(module)
        return found  # type: ignore[return-value]
