"""The TileLang kernels of a package: turns a compilation into files, entries, and binaries for a package's calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attncompiler.artifact import triton
from attncompiler.artifact.backend import Backend, PackagedKernel
from attncompiler.artifact.program import program_entry
from attncompiler.artifact.specialize import Wanted
from attncompiler.backends.gpu_targets import Target
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.errors import InternalError
from attncompiler.runtime.errors import NoConfigurationError
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.offline_records import Built, Failed, Lowered
from attncompiler.runtime.tilelang_file import read_file
from attncompiler.runtime.tilelang_requests import (
    Usage,
    backward_usages,
    forward_usages,
    tilelang_request,
)
from attncompiler.runtime.tilelang_sources import TilelangSources
from attncompiler.runtime.tilelang_worker import LAUNCH
from attncompiler.runtime.triton_requests import Call
from attncompiler.runtime.triton_sources import stored

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation
    from attncompiler.runtime.offline import Result
    from attncompiler.runtime.offline_records import KernelRequest


@dataclass(frozen=True, slots=True)
class Carried:
    """What a package carries beside its files in TileLang: kernels with their binaries, files by path, a table."""

    kernels: list[PackagedKernel]
    files: dict[str, bytes]
    table: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Task:
    """A kernel of an entry for one usage and one target."""

    entry: int
    kind: Kind
    usage: Usage
    target: Target
    request: KernelRequest


def packaged_kernels(
    compilation: Compilation, wanted: Sequence[Wanted], *, backward: bool
) -> Iterator[PackagedKernel]:
    """The kernels as those of Triton, in TileLang; tiles are listed by Triton's."""
    for kernel in triton.packaged_kernels(
        compilation, wanted, backward=backward, printer=TilelangSources
    ):
        if kernel.entry["kind"] == "tiles":
            yield kernel
            continue
        more = {"module": asdict(read_file(kernel.source)), "binaries": []}
        yield replace(kernel, entry={**kernel.entry, **more})


def carry(
    compilation: Compilation,
    kernels: Sequence[PackagedKernel],
    targets: Sequence[Target],
    compile_them: Callable[[list[tuple[KernelRequest, Target]]], list[Result]],
) -> Carried:
    """Compile what ordinary calls launch, each kernel in the first configuration of its lists.

    That is: inference and, in a package with a backward, training; with and without kept statistics; as many heads of
    keys as of queries and fewer; rows that begin at multiples of 16 bytes where the head dimensions allow. Raises
    NoConfigurationError for a kernel that does not compile.
    """
    trains = any(k.entry["kind"] == "backward" for k in kernels)
    sources = TilelangSources(Kernels(compilation))
    tasks = [
        task
        for number, kernel in enumerate(kernels)
        if kernel.entry["backend"] == "tilelang" and kernel.entry["kind"] != "tiles"
        for task in _tasks(number, kernel, sources, targets, trains=trains)
    ]
    results = compile_them([(task.request, task.target) for task in tasks])
    files: dict[str, bytes] = {}
    table: list[dict[str, Any]] = []
    listed: dict[int, list[dict[str, Any]]] = {}
    for task, result in zip(tasks, results, strict=True):
        entry = kernels[task.entry].entry
        if isinstance(result, Failed):
            raise NoConfigurationError(
                kind=f"tilelang {task.kind}{_label(task.usage)}",
                arch=task.target.name,
                dtype=entry["dtype"],
                reasons=f"    {result.reason}",
                other="--backend triton, ",
            )
        binary = _filed(_stem(task, entry), result, files)
        constants = dict(task.request.constexprs)
        place = {
            "arch": task.target.name,
            "kernel": task.request.kernel,
            **binary,
            "constants": constants,
        }
        listed.setdefault(task.entry, []).append(place)
        table.append({"source": entry["file"], **place, **_resources(result)})
    made = [
        replace(k, entry={**k.entry, "binaries": listed[n]}) if n in listed else k
        for n, k in enumerate(kernels)
    ]
    return Carried(made, files, table)


def _tasks(
    number: int,
    kernel: PackagedKernel,
    sources: TilelangSources,
    targets: Sequence[Target],
    *,
    trains: bool,
) -> Iterator[_Task]:
    entry = kernel.entry
    dims = entry["dtype"], entry["head_dim"], entry["value_dim"]
    call = Call(*dims, tensors={}, params={}, listed=sources.signature.listed)
    path = stored(Path(kernel.path).stem, kernel.source)
    for target in targets:
        for kind, usages in _usages(entry, sources, trains=trains):
            config = Config(*entry["tiles"][kind][target.name][0])
            for usage in usages:
                request = tilelang_request(path, kind, usage.of(call), config, target)
                yield _Task(number, kind, usage, target, request)


def _usages(
    entry: Mapping[str, Any], sources: TilelangSources, *, trains: bool
) -> Iterator[tuple[Kind, list[Usage]]]:
    """The kernels of a file, and what calls of each differ in."""
    if entry["kind"] == "forward":
        found = [
            usage
            for training in ((False, True) if trains else (False,))
            for usage in forward_usages(
                sources.kernels, sources.signature, entry["dtype"], trains=training
            )
        ]
        yield "forward", list(dict.fromkeys(found))
        return
    signature = sources.backward_signature(frozenset(entry["wanted"]))
    kinds: tuple[Kind, ...] = ("rows", "columns")
    for kind in kinds:
        yield kind, backward_usages(signature, kind)


def _label(usage: Usage) -> str:
    """What tells the files of a kernel's usages apart."""
    given = usage.given
    saves = any(n == "values" or n.startswith("save_") for n in given)
    parts = {
        "training": saves and "dq" not in given,
        "kept": any(n == "kept" or n.startswith("grad_") for n in given),
        "measuring": usage.phase == 1,
        "grouped": not usage.alone,
    }
    return "".join(f"_{name}" for name, told in parts.items() if told)


def _stem(task: _Task, entry: Mapping[str, Any]) -> str:
    file = Path(entry["file"]).stem
    kind = task.kind if file == task.kind else f"{file}_{task.kind}"
    if file.endswith(f"_{entry['dtype']}"):
        kind = kind.replace(f"_{entry['dtype']}", "", 1)
    dims = f"{entry['dtype']}_d{entry['head_dim']}_v{entry['value_dim']}"
    return f"gpu/{task.target.name}/{kind}_{dims}{_label(task.usage)}"


def _filed(stem: str, result: Built | Lowered, files: dict[str, bytes]) -> dict[str, Any]:
    """Put what was made into ``files``; their paths, and why there is no binary where there is none."""
    text = f"{stem}{result.text.suffix}"
    if text in files:
        raise InternalError("artifact", f"two kernels are called {text}")
    files[text] = result.text.read_bytes()
    found: dict[str, Any] = {"binary": None, "launch": None, "text": text, "why": ""}
    launch = result.text.with_name(LAUNCH)
    if launch.exists():
        found["launch"] = f"{stem}.json"
        files[found["launch"]] = launch.read_bytes()
    if isinstance(result, Lowered):
        return found | {"why": result.reason}
    why = json.loads(launch.read_bytes()).get("refused", "")
    if why:
        return found | {"why": f"no launcher is known: {why}"}
    found["binary"] = f"{stem}{result.binary.suffix}"
    files[found["binary"]] = result.binary.read_bytes()
    return found


def _resources(result: Built | Lowered) -> dict[str, Any]:
    """What a launcher need not know: what a block takes."""
    found: dict[str, Any] = {"num_warps": result.num_warps, "shared": result.shared}
    if isinstance(result, Built):
        found |= {
            "registers": result.registers,
            "spill_stores": result.spill_stores,
            "spill_loads": result.spill_loads,
        }
    return found


def program(
    compilation: Compilation, wanted: Sequence[Wanted], *, backward: bool
) -> dict[str, Any]:
    """What ``runtime/packaged_tilelang.py`` reads besides ``program_entry``."""
    sources = TilelangSources(Kernels(compilation))
    common = program_entry(compilation, wanted, backward=backward)
    return common | {"tilelang": asdict(sources.signature)}


TILELANG = Backend(
    name="tilelang",
    device="cuda",
    needs="NVIDIA's driver or TileLang",
    # Triton lists the tiles of some masks; numpy is imported where its interpreter runs.
    libraries=frozenset({"torch", "triton", "numpy", "tilelang"}),
    modules=("runtime.packaged_tilelang",),
    kernels=packaged_kernels,
    program=program,
)
