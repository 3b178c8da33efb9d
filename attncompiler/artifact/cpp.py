"""The C++ kernels of a package: turns a compilation into sources, entries of the manifest, and run-time modules."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from attncompiler.artifact.specialize import Wanted
from attncompiler.backends.cpp import Specialization
from attncompiler.ir.program import TensorDecl
from attncompiler.runtime.building import BuiltKernel
from attncompiler.runtime.description import backward_signature, plan_signature
from attncompiler.runtime.kernels import Kernels

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation

BACKEND = "cpp"
NEEDS = " and a C++ compiler"
# What a package needs besides the modules that every package has.
MODULES = ("runtime.packaged_cpp",)


@dataclass(frozen=True, slots=True)
class PackagedKernel:
    """One kernel: its path in the package, its source, its entry in the manifest, and what is built of it here."""

    path: str
    source: str
    entry: dict[str, Any]
    built: BuiltKernel


def packaged_kernels(
    compilation: Compilation, wanted: Sequence[Wanted], *, backward: bool
) -> Iterator[PackagedKernel]:
    """Build the kernels one after the other: forwards, planning kernels, backwards.

    There are two backwards where tensors learn: one for calls that want their gradients, one for all others.
    """
    kernels = Kernels(compilation)
    kernel = compilation.kernel
    for spec in wanted:
        made = _specialization(spec, kernel.tensors)
        yield _packaged(spec, "forward", made, kernel.tensors, kernels.build(made))
    if kernel.planned:
        plan = compilation.tile_plan
        for real in dict.fromkeys(
            "float64" if x.dims[0] == "float64" else "float32" for x in wanted
        ):
            like = next(x for x in wanted if (x.dims[0] == "float64") == (real == "float64"))
            spec = Wanted((real, 1, 1), like.tensors)
            made = _specialization(spec, plan.tensors)
            signature = asdict(plan_signature(plan))
            built = kernels.build_planner(made)
            yield _packaged(spec, "tiles", made, plan.tensors, built, signature=signature)
    if not backward:
        return
    for spec in wanted:
        for learns in dict.fromkeys((kernels.learns, frozenset[str]())):
            loops = kernels.loops(learns)
            made = _specialization(spec, loops.tensors)
            name = "backward" if learns == kernels.learns else "backward_of_inputs"
            yield _packaged(
                spec,
                "backward",
                made,
                loops.tensors,
                kernels.build_backward(made, learns),
                name=name,
                wanted=sorted(learns),
                signature=asdict(backward_signature(loops)),
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


def _specialization(spec: Wanted, read: Sequence[TensorDecl]) -> Specialization:
    return Specialization(*spec.dims, tuple(spec.tensors[t.name] for t in read))


def _packaged(
    spec: Wanted,
    kind: str,
    made: Specialization,
    read: Sequence[TensorDecl],
    built: BuiltKernel,
    *,
    name: str = "",
    wanted: Sequence[str] = (),
    signature: dict[str, Any] | None = None,
) -> PackagedKernel:
    source = built.path_source.read_text()
    dtype, head_dim, value_dim = spec.dims
    stem = f"{name or kind}_{dtype}"
    path = f"kernels/{stem}{built.path_source.suffix}"
    entry = {
        "kind": kind,
        "file": path,
        "sha256": hashlib.sha256(source.encode()).hexdigest(),
        "dtype": dtype,
        "head_dim": head_dim,
        "value_dim": value_dim,
        "tensors": dict(zip((t.name for t in read), made.tensors, strict=True)),
        "wanted": list(wanted),
        "stem": stem,
        "signature": signature,
    }
    return PackagedKernel(path, source, entry, built)
