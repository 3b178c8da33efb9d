"""The C++ kernels of a package: turns a compilation into sources and entries of the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from attncompiler.artifact.backend import Backend, PackagedKernel
from attncompiler.artifact.program import program_entry
from attncompiler.artifact.specialize import Wanted
from attncompiler.backends.cpp import Specialization
from attncompiler.backends.cpp_cut import Schedule
from attncompiler.ir.program import TensorDecl
from attncompiler.runtime.building import BuiltKernel
from attncompiler.runtime.description import backward_signature, plan_signature
from attncompiler.runtime.kernels import Kernels
from attncompiler.tuning.winners import Winners

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
        specialization = _specialization(spec, kernel.tensors)
        built = kernels.build(specialization)
        types = _types(spec, kernel.tensors)
        packaged = _packaged(name, built, "forward", spec, types)
        winners = kernels.winners(specialization, None)
        yield _with_tuned(packaged, winners, partial(kernels.source, specialization))
    if kernel.planned:
        yield from _planners(kernels, wanted)
    if not backward:
        return
    for spec in wanted:
        for learns in dict.fromkeys((kernels.learns, frozenset[str]())):
            loops = kernels.loops(learns)
            specialization = _specialization(spec, loops.tensors)
            built = kernels.build_backward(specialization, learns)
            packaged = _packaged(
                name,
                built,
                "backward",
                spec,
                _types(spec, loops.tensors),
                file="backward" if learns == kernels.learns else "backward_of_inputs",
                wanted=sorted(learns),
                signature=asdict(backward_signature(loops)),
            )
            winners = kernels.winners(specialization, learns)
            print_source = partial(kernels.backward_source, specialization, learns)
            yield _with_tuned(packaged, winners, print_source)


def _with_tuned(
    kernel: PackagedKernel, winners: Winners, print_source: Callable[[Schedule], str]
) -> PackagedKernel:
    """A kernel with what tuning found here: a file for each schedule, and which calls take it."""
    files: dict[Schedule, str] = {}
    tuned = []
    for bucket, record in winners.all():
        cut = Schedule(**record.choice)
        if record.ratio == 1.0:
            continue
        path = files.setdefault(cut, f"{kernel.path.removesuffix('.cpp')}_{len(files) + 1}.cpp")
        tuned.append({"calls": asdict(bucket), "file": path, "schedule": asdict(cut)})
    more = tuple((path, print_source(cut)) for cut, path in files.items())
    return replace(kernel, entry=kernel.entry | {"tuned": tuned}, more=more)


def _planners(kernels: Kernels, wanted: Sequence[Wanted]) -> Iterator[PackagedKernel]:
    """The planning kernels of the mask, one for each type that kernels compute in."""
    plan = kernels.compilation.tile_plan
    reals = {"float64" if spec.dims[0] == "float64" else "float32": spec for spec in wanted}
    for real, like in reals.items():
        spec = Wanted((real, 1, 1), like.tensors)
        built = kernels.build_planner(_specialization(spec, plan.tensors))
        types = _types(spec, plan.tensors)
        signature = asdict(plan_signature(plan))
        yield _packaged(kernels.name, built, "tiles", spec, types, signature=signature)


def _packaged(
    name: str,
    built: BuiltKernel,
    kind: str,
    spec: Wanted,
    types: dict[str, str],
    *,
    file: str = "",
    wanted: Sequence[str] = (),
    **more: object,
) -> PackagedKernel:
    return PackagedKernel.of(
        "cpp",
        kind,
        f"{file or kind}_{spec.dims[0]}{built.path_source.suffix}",
        built.path_source.read_text(),
        spec.dims,
        types,
        wanted=wanted,
        built=built,
        entry=_entry(name, built),
        **more,
    )


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
    needs="a C++ compiler",
    libraries=frozenset({"torch"}),
    modules=("runtime.packaged_cpp",),
    kernels=packaged_kernels,
    program=program_entry,
)
