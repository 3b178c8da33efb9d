"""What a package made by ``attncompiler build`` says of its kernels: turns its manifest into signatures and choices.

Nothing here knows a backend; ``packaged_cpp.py`` and its like load what is chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from attncompiler.ir.declared import ParamDecl, TensorDecl
from attncompiler.runtime.call_checks import ELEMENT_TYPES
from attncompiler.runtime.errors import NotBuiltError
from attncompiler.runtime.signature import (
    BackwardSignature,
    PlanSignature,
    Separation,
    Signature,
    TensorGrad,
)

Json = Mapping[str, Any]


class ManifestKernels:
    """What a manifest says of the kernels of one backend: ``Described`` (``signature.py``), and a choice among them."""

    backend: str

    def __init__(self, folder: Path, manifest: Json) -> None:
        program = manifest["program"]
        self.folder, self.manifest = folder, manifest
        self.name: str = manifest["variant"]
        self.identity: str = program["identity"]
        self.dot_factor: float = program["dot_factor"]
        self.signature = Signature(
            params=_params(program),
            tensors=_tensors(program),
            kept=tuple(program["kept"]),
            stats=tuple(program["stats"]),
            planned=program["planned"],
        )

    @property
    def gradient(self) -> Json:
        """What the backward reads and gives. Raises NotBuiltError for a package without one."""
        found: Json | None = self.manifest["program"]["gradient"]
        if found is None:
            raise self._not_built(
                "results",
                "gradients",
                f"call it under torch.no_grad(), or build it anew: {self._command('--backward')}",
            )
        return found

    @property
    def saved(self) -> tuple[str, ...]:
        """The statistics of the forward that the backward reads."""
        return tuple(self.gradient["saved"])

    @property
    def learns(self) -> frozenset[str]:
        """The captured tensors whose gradient is not 0 everywhere."""
        return frozenset(self.gradient["learns"])

    @property
    def reads_value(self) -> bool:
        """Whether the backward reads the output row before the epilogue."""
        return bool(self.gradient["reads_value"])

    def saves_value(self, dtype: torch.dtype) -> bool:
        """Whether the backward of a type reads an output row before the epilogue that is not the output itself."""
        return ELEMENT_TYPES[dtype] in self.gradient["saves_value"]

    def find(
        self,
        kind: str,
        dims: tuple[str, int, int],
        types: Mapping[str, str],
        wanted: frozenset[str] = frozenset(),
    ) -> Json:
        """The kernel of a kind for an element type, head_dim and value_dim, and types of captured tensors by name.

        Of several backwards it is the one with the fewest gradients besides those in ``wanted``. Raises NotBuiltError
        when the package has none.
        """
        listed = [
            k for k in self.manifest["kernels"] if (k["backend"], k["kind"]) == (self.backend, kind)
        ]
        same = [k for k in listed if k["dtype"] == dims[0]]
        if not same:
            known = ", ".join(dict.fromkeys(k["dtype"] for k in listed))
            fix = f"convert q, k and v, or build it anew: {self._command(f'--dtype {dims[0]}')}"
            raise self._not_built(known, dims[0], fix)
        fitting = [k for k in same if (k["head_dim"], k["value_dim"]) == dims[1:]]
        if not fitting:
            raise self._not_built(
                f"head_dim {same[0]['head_dim']} and value_dim {same[0]['value_dim']}",
                f"{dims[1]} and {dims[2]}",
                f"build it anew: {self._command(f'--head-dim {dims[1]} --value-dim {dims[2]}')}",
            )
        for name, dtype in types.items():
            known_types = [k["tensors"][name] for k in fitting if name in k["tensors"]]
            if known_types and dtype not in known_types:
                fix = f"pass {name}.to(torch.{known_types[0]})"
                raise self._not_built(f"{name} of {known_types[0]}", dtype, fix)
        kernels = [k for k in fitting if wanted <= set(k["wanted"])]
        chosen: Json = min(kernels, key=lambda k: len(k["wanted"]))
        return chosen

    def _not_built(self, known: str, asked: str, fix: str) -> NotBuiltError:
        return NotBuiltError(variant=self.name, known=known, asked=asked, fix=fix)

    def _command(self, options: str) -> str:
        return f"{self.manifest['command']} {options}"


def backward_signature(kernel: Json) -> BackwardSignature:
    """The signature of a backward in the list of kernels."""
    data = kernel["signature"]
    return BackwardSignature(
        params=_params(data),
        tensors=_tensors(data),
        saved=tuple(data["saved"]),
        kept=tuple(data["kept"]),
        grads=tuple(
            TensorGrad(**{**g, "separation": Separation(**g["separation"])}) for g in data["grads"]
        ),
        reads_value=data["reads_value"],
        planned=data["planned"],
    )


def plan_signature(kernel: Json) -> PlanSignature:
    """The signature of a planning kernel in the list of kernels."""
    data = kernel["signature"]
    return PlanSignature(_params(data), _tensors(data), data["by_batch"], data["by_head"])


def _params(data: Json) -> tuple[ParamDecl, ...]:
    return tuple(ParamDecl(**p) for p in data["params"])


def _tensors(data: Json) -> tuple[TensorDecl, ...]:
    return tuple(TensorDecl(t["name"], tuple(t["axes"]), t["kind"]) for t in data["tensors"])
