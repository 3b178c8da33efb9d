"""Puts the tilings first that tuning found for calls like the one at hand, as the manifest of a package lists them.

A list holds what was measured where the package was made; on other devices, and for other calls, the order stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attncompiler.backends.tile_config import Kind
from attncompiler.runtime.call_checks import INPUT_TYPES
from attncompiler.runtime.manifest import Json, ManifestKernels
from attncompiler.runtime.signature import Signature
from attncompiler.runtime.situation import Situation
from attncompiler.runtime.tile_tables import Sizes
from attncompiler.runtime.tilings import Tilings
from attncompiler.runtime.triton_engine import TritonEngine
from attncompiler.runtime.triton_launch import Tiling


class ListedTilings:
    """A ``Tuner`` (``triton_engine.py``) that measures nothing."""

    def __init__(self, kernels: ManifestKernels) -> None:
        self._kernels = kernels

    def forward(
        self, engine: TritonEngine, module: ModuleType, options: Tilings, call: tuple[Any, ...]
    ) -> None:
        """Before ``engine.forward(*call)`` launches."""
        q, _, v, *_ = call
        situation = forward_situation(self._kernels.signature, call)
        kernel = self._kernels.find("forward", _dims(q, v), _types(situation))
        _prefer(kernel, "forward", options, situation, q)

    def backward(
        self,
        engine: TritonEngine,
        module: ModuleType,
        options: Sequence[tuple[Kind, Tilings]],
        call: tuple[Any, ...],
        named: Mapping[str, Any],
    ) -> None:
        """Before ``engine.backward(*call, **named)`` launches."""
        (q, _, v), *_ = call
        situation = backward_situation(call, named)
        kernel = self._kernels.find("backward", _dims(q, v), _types(situation), named["wanted"])
        for kind, mine in options:
            _prefer(kernel, kind, mine, situation, q)


def _prefer(kernel: Json, kind: Kind, options: Tilings, situation: Situation, q: Tensor) -> None:
    """How dense the mask is, is not asked here: of several results that of the densest counts."""
    place = {
        "kind": kind,
        "device": device_name(q.device),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }
    like = asdict(situation.bucket(1.0))
    fitting = [
        t
        for t in kernel["tuned"]
        if all(t[name] == x for name, x in place.items())
        and {**t["calls"], "density": like["density"]} == like
    ]
    if fitting:
        options.prefer(Tiling(**max(fitting, key=lambda t: float(t["calls"]["density"]))["tiling"]))


def forward_situation(signature: Signature, call: tuple[Any, ...]) -> Situation:
    """What a schedule of ``engine.forward(*call)`` is chosen by; a GPU's does not depend on threads."""
    q, k, _, captured, q_start, _, numbers = call[:7]
    tensors = {t.name: x for t, x in zip(signature.tensors, captured, strict=True)}
    params = {p.name: x for p, x in zip(signature.params, numbers, strict=True)}
    return Situation(Sizes.of(q, k), q_start, params, tensors, threads=0)


def backward_situation(call: tuple[Any, ...], named: Mapping[str, Any]) -> Situation:
    """The same of ``engine.backward(*call, **named)``."""
    (q, k, _), _, _, tensors = call
    return Situation(Sizes.of(q, k), named["q_start"], named["params"], tensors, threads=0)


def device_name(device: torch.device) -> str:
    """What results of measurements name a device by."""
    if device.type != "cuda":
        return "an interpreter"
    return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"


def _dims(q: Tensor, v: Tensor) -> tuple[str, int, int]:
    return INPUT_TYPES[q.dtype], q.shape[3], v.shape[3]


def _types(situation: Situation) -> dict[str, str]:
    return {n: str(x.dtype).removeprefix("torch.") for n, x in situation.tensors.items()}
