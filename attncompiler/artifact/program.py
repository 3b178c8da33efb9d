"""Turns a compilation into what a manifest says of its program, whatever the backend."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from attncompiler.artifact.specialize import Wanted
from attncompiler.runtime.kernels import Kernels

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation


def program_entry(
    compilation: Compilation, wanted: Sequence[Wanted], *, backward: bool
) -> dict[str, Any]:
    """What the manifest says of the program: ``ManifestKernels`` reads it."""
    kernels = Kernels(compilation)
    gradient = None
    if backward:
        dtypes = dict.fromkeys(spec.dims[0] for spec in wanted)
        gradient = {
            "saved": kernels.saved,
            "learns": sorted(kernels.learns),
            "reads_value": kernels.reads_value,
            "saves_value": [d for d in dtypes if kernels.saves_value(getattr(torch, d))],
        }
    return {
        "identity": hashlib.sha256(kernels.identity.encode()).hexdigest(),
        "dot_factor": kernels.dot_factor,
        **asdict(kernels.signature),
        "gradient": gradient,
    }
