"""The Triton kernels of a package: turns a compilation into files, entries and lists of how kernels may be cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from attncompiler.artifact.backend import Backend, PackagedKernel
from attncompiler.artifact.program import program_entry
from attncompiler.artifact.specialize import Wanted
from attncompiler.backends.gpu_targets import TARGETS
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.ir.program import TensorDecl
from attncompiler.runtime.interpreting import is_interpreting
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.listed_tilings import device_name
from attncompiler.runtime.triton_sources import TritonSources
from attncompiler.tuning.gpu_tuner import folder_for, specialization
from attncompiler.tuning.records import records

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation
    from attncompiler.tuning.gpu_build import GpuBuild

# The fields of a Config, in order.
Tiles = tuple[Any, ...]


def packaged_kernels(
    compilation: Compilation,
    wanted: Sequence[Wanted],
    *,
    backward: bool,
    printer: type[TritonSources] = TritonSources,
) -> Iterator[PackagedKernel]:
    """Print the kernels: forward, planner, backwards. A file serves all types and dimensions that it is the same for.

    There are two backwards where tensors learn: one for calls that want their gradients, one for all others.
    """
    files: dict[str, str] = {}
    for spec in wanted:
        for kernel in _printed(printer(Kernels(compilation)), spec, backward=backward):
            yield _filed(kernel, files)


def _printed(sources: TritonSources, spec: Wanted, *, backward: bool) -> Iterator[PackagedKernel]:
    kernels = sources.kernels

    def packaged(
        kind: str, read: Sequence[TensorDecl], source: str, file: str = "", **more: Any
    ) -> PackagedKernel:
        types = {t.name: spec.tensors[t.name] for t in read}
        file = f"{file or kind}.py"
        return PackagedKernel.of(sources.language, kind, file, source, spec.dims, types, **more)

    def types(read: Sequence[TensorDecl]) -> list[str]:
        return [spec.tensors[t.name] for t in read]

    read = kernels.kernel.tensors
    kinds: tuple[Kind, ...] = ("forward",)
    source = sources.forward_source(types(read))
    tuned = _tuned(sources, kinds, source, spec, read)
    yield packaged("forward", read, source, tiles=_tiles(sources, spec, kinds), tuned=tuned)
    if _planned(sources):
        read = kernels.compilation.tile_plan.tensors
        source = sources.plan_source(types(read))
        yield packaged("tiles", read, source, signature=asdict(sources.plan_signature))
    if not backward:
        return
    for learns in dict.fromkeys((kernels.learns, frozenset[str]())):
        read, kinds = kernels.loops(learns).tensors, ("rows", "columns")
        source = sources.backward_source(learns, types(read))
        yield packaged(
            "backward",
            read,
            source,
            "backward" if learns == kernels.learns else "backward_of_inputs",
            wanted=sorted(learns),
            signature=asdict(sources.backward_signature(learns)),
            tiles=_tiles(sources, spec, kinds, learns),
            tuned=_tuned(sources, kinds, source, spec, read),
        )


def _planned(sources: TritonSources) -> bool:
    """Whether some call lists tiles: those of masks without runs, and with integers that runs might overflow by."""
    signature = sources.signature
    integers = any(p.kind == "int" for p in sources.kernels.signature.params)
    return signature.masked and (signature.listed or integers)


def _filed(kernel: PackagedKernel, files: dict[str, str]) -> PackagedKernel:
    """The kernel in a file of its own, unless another one is the same; ``files`` are those so far."""
    if files.setdefault(kernel.path, kernel.source) == kernel.source:
        return kernel
    stem = kernel.path.removesuffix(".py")
    path = f"{stem}_{kernel.entry['dtype']}.py"
    files[path] = kernel.source
    return replace(kernel, path=path, entry={**kernel.entry, "file": path})


def _tiles(
    sources: TritonSources,
    spec: Wanted,
    kinds: Sequence[Kind],
    learns: frozenset[str] = frozenset(),
) -> dict[str, dict[str, list[Tiles]]]:
    """For each kernel of a file and each known architecture the configurations worth trying, the best guess first."""
    return {
        kind: {
            name: [astuple(c) for c in sources.configs(kind, target, spec.dims, learns)]
            for name, target in TARGETS.items()
        }
        for kind in kinds
    }


def _tuned(
    sources: TritonSources,
    kinds: Sequence[Kind],
    source: str,
    spec: Wanted,
    read: Sequence[TensorDecl],
) -> list[dict[str, Any]]:
    """What tuning found on the devices that are here: kernel, device, class of calls, tiling."""
    types = specialization(spec.dims, {t.name: spec.tensors[t.name] for t in read})
    found = []
    for kind, device, tf32 in product(kinds, _devices(), (False, True)):
        kernel = sources.language, kind, source
        folder = folder_for(
            sources.kernels.name, kernel, types, device, deterministic=True, tf32=tf32
        )
        place = {"kind": kind, "device": device_name(device), "tf32": tf32}
        found += [
            {**place, "calls": record.bucket, "tiling": record.choice}
            for _, record in records(folder)
        ]
    return found


def _devices() -> list[torch.device]:
    """One of each model; the interpreter's where that runs kernels."""
    if is_interpreting():
        return [torch.device("cpu")]
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return list({device_name(device): device for device in devices}.values())


def preferring(kernels: Sequence[PackagedKernel], built: GpuBuild) -> list[PackagedKernel]:
    """Lists with what an offline build found: the chosen one first, none that spills or fails but the last.

    A package has the kernels of one language for GPUs.
    """
    chosen: dict[tuple[object, ...], Config] = {}
    for binary in built.binaries:
        place = binary.target.name, binary.kind, binary.dtype, binary.head_dim, binary.value_dim
        chosen[place] = binary.config
    bad: dict[tuple[object, ...], set[Config]] = {}
    for row in built.rows:
        if row.problems:
            case = row.result.target.name, row.kind, row.dtype
            bad.setdefault(case, set()).add(row.config)

    def lists(entry: dict[str, Any]) -> dict[str, Any]:
        dims = entry["dtype"], entry["head_dim"], entry["value_dim"]
        return {
            kind: {
                arch: _ordered(
                    configs, chosen.get((arch, kind, *dims)), bad.get((arch, kind, dims[0]), set())
                )
                for arch, configs in of_kind.items()
            }
            for kind, of_kind in entry["tiles"].items()
        }

    return [
        replace(k, entry={**k.entry, "tiles": lists(k.entry)}) if "tiles" in k.entry else k
        for k in kernels
    ]


def _ordered(listed: list[Tiles], first: Config | None, bad: set[Config]) -> list[Tiles]:
    configs = [Config(*c) for c in listed]
    last = [c for c in configs if c == c.usual][-1]
    found = [] if first is None else [first]
    found += [c for c in configs if c == last or c.alike not in bad]
    return [astuple(c) for c in dict.fromkeys(found)]


def program(
    compilation: Compilation, wanted: Sequence[Wanted], *, backward: bool
) -> dict[str, Any]:
    """What ``runtime/packaged_triton.py`` reads besides ``program_entry``."""
    sources = TritonSources(Kernels(compilation))
    common = program_entry(compilation, wanted, backward=backward)
    return common | {"triton": asdict(sources.signature)}


TRITON = Backend(
    name="triton",
    device="cuda",
    needs="triton",
    # numpy is imported where Triton's interpreter runs, which needs it itself.
    libraries=frozenset({"torch", "triton", "numpy"}),
    modules=("runtime.packaged_triton",),
    kernels=packaged_kernels,
    program=program,
)
