"""Chooses who runs a call: one engine for each type of device, by the backend that the operator was compiled for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attncompiler.runtime.call_checks import refuse_device
from attncompiler.runtime.engine import Engine
from attncompiler.runtime.errors import MissingTilelangError, MissingTritonError
from attncompiler.runtime.gpu_choice import GpuChoice
from attncompiler.runtime.interpreting import SERIAL_SWITCH, is_interpreting, is_serial
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.launch import Launcher

if TYPE_CHECKING:
    from attncompiler.runtime.triton_engine import TritonEngine

# What runs on a type of device where the user leaves the choice to us: a backend, or measurements choose ("gpu").
CHOICE = {"cpu": "cpp", "cuda": "gpu"}
# Where each backend runs.
DEVICES = {"cpp": "cpu", "triton": "cuda", "tilelang": "cuda"}
# Whether its kernels run on the CPU all the same, to be checked.
_CHECKS: dict[str, Callable[[], bool]] = {
    "cpp": lambda: False,
    "triton": is_interpreting,
    "tilelang": is_serial,
}
_SLOWLY = {
    "triton": "TRITON_INTERPRET=1 before Python starts, for Triton's slow interpreter",
    "tilelang": f"{SERIAL_SWITCH}=1, for one slow thread and float32",
}


class Engines:
    """The engines of one operator, each made when a call first needs it."""

    def __init__(
        self,
        kernels: Kernels,
        backend: str,
        *,
        deterministic: bool = True,
        tune: float | None = None,
    ) -> None:
        self.kernels = kernels
        self.backend = backend
        self.deterministic = deterministic
        self.tune = tune
        self._found: dict[str, Engine] = {}

    def __getitem__(self, device: str) -> Engine:
        """The engine for a type of device."""
        found = self._found.get(device)
        if found is None:
            make = _ENGINES[self.name(device)]
            found = self._found[device] = make(self.kernels, self.deterministic, self.tune)
        return found

    def of(self, q: Tensor) -> Engine:
        """The engine of a call; DeviceError where the backend does not run on the device of q."""
        device = q.device
        if device.type not in self._found and self.name(device.type) == "":
            if self.backend == "cpp":
                refuse_device("q", device, "the cpp backend runs on the CPU", "cpu")
            why = f"the {self.backend} backend runs on CUDA devices"
            if not torch.cuda.is_available():
                why += ", of which torch finds none"
            other = f'; or compile with backend="auto", which runs C++ on the CPU; or set {_SLOWLY[self.backend]}'
            refuse_device("q", device, why, "cuda", other)
        return self[device.type]

    def explain(self) -> list[str]:
        """Which backend runs the calls of each type of device, and how sums are ordered, in lines of text."""
        lines = [f"   Compiled for backend {self.backend}."]
        for device, title in (("cpu", "the CPU"), ("cuda", "CUDA devices")):
            name = self.name(device)
            how = _HOW[name] if name else "refused with an error"
            lines.append(f"   Tensors on {title}: {how}.")
            found = self._found.get(device)
            lines += found.explain() if isinstance(found, GpuChoice) else []
        if not self.deterministic:
            lines.append(
                "   Gradients of tensors that many programs add to may differ in their last bits."
            )
        return lines

    def name(self, device: str) -> str:
        """The backend that runs on a type of device; "gpu" where measurements choose it, empty where none does."""
        if self.backend == "auto":
            return CHOICE.get(device, "")
        if device == DEVICES[self.backend]:
            return self.backend
        return self.backend if device == "cpu" and _CHECKS[self.backend]() else ""


def _cpp(kernels: Kernels, deterministic: bool, tune: float | None) -> Engine:
    """Threads never share a sum: there is no other order to allow."""
    launcher = Launcher(kernels)
    if tune is not None:
        from attncompiler.tuning.cpp_tuner import CppTuner
        from attncompiler.tuning.tuner import Limits

        launcher.tuner = CppTuner(kernels, Limits(seconds=tune))
    return launcher


def _gpu(kernels: Kernels, deterministic: bool, tune: float | None) -> Engine:
    """Triton's kernels, or those of TileLang where that is installed and was measured to be faster."""
    usual = _triton(kernels, deterministic, tune)
    if importlib.util.find_spec("tilelang") is None:
        return usual
    from attncompiler.tuning.gpu_judge import GpuJudge
    from attncompiler.tuning.tuner import Limits

    engines = {"triton": usual, "tilelang": _tilelang(kernels, deterministic, tune)}
    return GpuChoice(engines, GpuJudge(kernels, None if tune is None else Limits(seconds=tune)))


def _triton(kernels: Kernels, deterministic: bool, tune: float | None) -> TritonEngine:
    if importlib.util.find_spec("triton") is None:
        raise MissingTritonError
    from attncompiler.runtime.triton_engine import TritonEngine
    from attncompiler.runtime.triton_sources import TritonSources

    return _tuned(TritonEngine(kernels, TritonSources(kernels)), kernels, deterministic, tune)


def _tilelang(kernels: Kernels, deterministic: bool, tune: float | None) -> TritonEngine:
    if importlib.util.find_spec("tilelang") is None:
        raise MissingTilelangError
    from attncompiler.runtime.tilelang_sources import TilelangSources
    from attncompiler.runtime.triton_engine import TritonEngine

    engine = TritonEngine(kernels, TilelangSources(kernels), "tilelang")
    return _tuned(engine, kernels, deterministic, tune)


def _tuned(
    engine: TritonEngine, kernels: Kernels, deterministic: bool, tune: float | None
) -> TritonEngine:
    from attncompiler.tuning.gpu_tuner import GpuTuner
    from attncompiler.tuning.tuner import Limits

    engine.deterministic = deterministic
    engine.tuner = GpuTuner(kernels, None if tune is None else Limits(seconds=tune))
    return engine


_ENGINES: dict[str, Callable[[Kernels, bool, float | None], Engine]] = {
    "cpp": _cpp,
    "gpu": _gpu,
    "triton": _triton,
    "tilelang": _tilelang,
}
_HOW = {
    "cpp": "C++ kernels (cpp)",
    "gpu": "Triton kernels (triton), or those of TileLang (tilelang) for calls that tuning found them faster for",
    "triton": "Triton kernels (triton)",
    "tilelang": "TileLang kernels (tilelang)",
}
