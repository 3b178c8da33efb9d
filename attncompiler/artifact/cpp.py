"""The C++ kernels of a package: turns a compilation into sources and entries of the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from attncompiler.artifact.backend import Backend, PackagedKernel
from attncompiler.artifact.specialize import Wanted
from attncompiler.backends.cpp import Specialization
from attncompiler.ir.program import TensorDecl
from attncompiler.runtime.building import BuiltKernel
from attncompiler.runtime.description import backward_signature, plan_signature
from attncompiler.runtime.kernels import Kernels

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation


def packaged_kernels(
    compilation: Compilation, wanted: Sequence[Wanted], *, backward: bool
) -> Iterator[PackagedKernel]:
    """Build the kernels one after the other: forwards, planning kernels, backwards.

    There are two backwards where tensors learn: one for calls that want their gradients, one for all others.
    """
    kernels = Kernels(compilation)
    name, kernel = kernels.name, compilation.kernel
    for spec in wanted:
        built = kernels.build(_specialization(spec, kernel.tensors))
        types = _types(spec, kernel.tensors)
        yield PackagedKernel.of(built, "forward", spec.dims, types, entry=_entry(name, built))
    if kernel.planned:
        yield from _planners(kernels, wanted)
    if not backward:
        return
    for spec in wanted:
        for learns in dict.fromkeys((kernels.learns, frozenset[str]())):
            loops = kernels.loops(learns)
            built = kernels.build_backward(_specialization(spec, loops.tensors), learns)
            yield PackagedKernel.of(
                built,
                "backward",
                spec.dims,
                _types(spec, loops.tensors),
                name="backward" if learns == kernels.learns else "backward_of_inputs",
                wanted=sorted(learns),
                signature=asdict(backward_signature(loops)),
                entry=_entry(name, built),
            )


def _planners(kernels: Kernels, wanted: Sequence[Wanted]) -> Iterator[PackagedKernel]:
    """The planning kernels of the mask, one for each type that kernels compute in."""
    plan = kernels.compilation.tile_plan
    reals = {"float64" if spec.dims[0] == "float64" else "float32": spec for spec in wanted}
    for real, like in reals.items():
        spec = Wanted((real, 1, 1), like.tensors)
        built = kernels.build_planner(_specialization(spec, plan.tensors))
        yield PackagedKernel.of(
            built,
            "tiles",
            spec.dims,
            _types(spec, plan.tensors),
            signature=asdict(plan_signature(plan)),
            entry=_entry(kernels.name, built),
        )


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


def _types(spec: Wanted, read: Sequence[TensorDecl]) -> dict[str, str]:
    return {t.name: spec.tensors[t.name] for t in read}


def _specialization(spec: Wanted, read: Sequence[TensorDecl]) -> Specialization:
    return Specialization(*spec.dims, tuple(spec.tensors[t.name] for t in read))


def _entry(name: str, built: BuiltKernel) -> str:
    """What tells the kernel's kind in the cache, where the package finds what has been built here."""
    return built.path_library.parent.name.rpartition("-")[0].removeprefix(f"{name.lower()}_")


CPP = Backend(
    name="cpp",
    device="cpu",
    needs=" and a C++ compiler",
    libraries=frozenset({"torch"}),
    modules=("runtime.packaged_cpp",),
    kernels=packaged_kernels,
    program=program_entry,
)
