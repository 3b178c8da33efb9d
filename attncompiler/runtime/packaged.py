"""The operator of a package made by ``attncompiler build``: its manifest and kernels as a function of tensors.

The package carries this file and whatever it imports; ``packaged_cpp.py`` and its like know the kernels of one backend.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from attncompiler.runtime.call_checks import check_least, number, refuse_device
from attncompiler.runtime.dispatch import Dispatch, autocast
from attncompiler.runtime.engine import Engine
from attncompiler.runtime.interpreting import is_interpreting
from attncompiler.runtime.prepared import run_carried, wanted_by
from attncompiler.runtime.signature import Described


class PackagedOperator:
    """The operator that the manifest in ``folder`` describes.

    ``prepare`` is the class that carries the variant's ``prepare``, if it has one; ``arrange`` makes, from the names of
    the tensors the kernel reads, what permutes tokens around it, for a variant with a layout.
    """

    def __init__(
        self,
        folder: Path,
        prepare: type | None = None,
        arrange: Callable[[tuple[str, ...]], Any] | None = None,
    ) -> None:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        call = manifest["call"]
        engines = PackagedEngines(folder, manifest)
        kernels = engines.kernels
        self.manifest = manifest
        self.name: str = manifest["variant"]
        self._run = Dispatch(engines)
        self._reads = tuple(t.name for t in kernels.signature.tensors)
        self._scalars = tuple(p.name for p in kernels.signature.params)
        self._kept = kernels.signature.kept
        self._axes = {name: ", ".join(map(str, axes)) for name, axes in call["tensors"].items()}
        self._kinds = dict(call["kinds"])
        self._values = dict(call["values"])
        self._limits = {name: (least, what) for name, (least, what) in call["limits"].items()}
        self._default_scale: float | None = call["scale"]
        self._prepare = prepare
        view = None if prepare is None else cast(Any, object.__new__(prepare))
        self._wants = () if view is None else wanted_by(view.prepare)
        self._arrangement = None if arrange is None else arrange(self._reads)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_start: int,
        scale: float | None,
        return_stats: bool,
        tensors: Mapping[str, Tensor | None],
        params: Mapping[str, float],
    ) -> Any:
        """The call of the package's ``attention``, which says what the arguments are."""
        if type(q_start) is not int:
            q_start = number(self.name, "q_start", "int", q_start)
        if scale is None:
            scale = self._default_scale
        elif type(scale) is not float:
            scale = number(self.name, "scale", "float", scale)
        values = dict(self._values)
        for name, value in params.items():
            values[name] = number(self.name, name, self._kinds[name], value)
        if self._limits:
            check_least(self._limits, values)
        given = {name: x for name, x in tensors.items() if x is not None}
        if self._prepare is not None:
            q, k, v, given = run_carried(
                self._prepare,
                self.name,
                self._axes,
                (q, k, v, q_start),
                given,
                values,
                self._wants,
            )
        captured: Any = [given.get(name) for name in self._reads]
        if self._arrangement is not None:
            q, k, v, captured = self._arrangement.inputs(q, k, v, captured, q_start)
        if isinstance(q, Tensor) and torch.is_autocast_enabled(q.device.type):
            q, k, v = autocast(q), autocast(k), autocast(v)
        numbers = [values[name] for name in self._scalars]
        out, kept = self._run(q, k, v, captured, q_start, scale, numbers, return_stats)
        if self._arrangement is not None:
            out, kept = self._arrangement.results(out, kept if return_stats else None)
        if not return_stats:
            return out
        rows = cast(Tensor, kept)
        return out, {name: rows[i] for i, name in enumerate(self._kept)}


class PackagedEngines:
    """The engines of a package by the device they run on, each made by its backend's ``packaged_<backend>.py``.

    That module has ``PackagedKernels``, what the manifest says of the kernels, and ``PackagedEngine``, which runs them.
    """

    backend = "auto"
    deterministic = True
    tune = None

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self._engines: dict[str, Engine] = {}
        described: list[Described] = []
        for backend, device in manifest["backends"].items():
            module = importlib.import_module(f"{__package__}.packaged_{backend}")
            described.append(module.PackagedKernels(folder, manifest))
            self._engines[device] = module.PackagedEngine(described[-1])
        # All backends say the same of the variant.
        self.kernels = described[0]
        self._interprets = "triton" in manifest["backends"]

    def of(self, q: Tensor) -> Engine:
        """The engine of a call; DeviceError for a q on a device without one."""
        device = q.device.type
        if self._interprets and device == "cpu" and is_interpreting():
            device = "cuda"
        found = self._engines.get(device)
        if found is None:
            known = " and ".join(self._engines)
            refuse_device("q", q.device, f"this package runs on {known}", next(iter(self._engines)))
        return found
