"""Turns a compilation into GPU binaries, a table of what they take, and the files of them for a package."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attncompiler.commands.options import EIGHT_BITS

if TYPE_CHECKING:
    from rich.console import Console

    from attncompiler.artifact.backend import PackagedKernel
    from attncompiler.artifact.specialize import Wanted
    from attncompiler.artifact.tilelang import Carried
    from attncompiler.backends.gpu_targets import Target
    from attncompiler.compiler import Compilation
    from attncompiler.runtime.offline_records import Language
    from attncompiler.tuning.gpu_build import GpuBinary, GpuBuild

_LANGUAGES: tuple[Language, ...] = ("triton", "tilelang")
_GPU_DTYPES = ("float32", "bfloat16", "float16")
_INSTEAD = "choose --dtype bfloat16, which holds all 8-bit floats"


def check_architectures(
    backends: Sequence[str], archs: Sequence[Target], dtypes: Sequence[str], out: Path | None
) -> None:
    """Refuse GPU architectures without a backend for them, the reverse, and what that backend does not have."""
    chosen = [name for name in _LANGUAGES if name in backends]
    if archs and not chosen:
        raise click.UsageError(
            "--arch names GPUs, for which Triton and TileLang make kernels: add --backend triton, "
            "or --backend cpp,triton for the CPU's kernels too, or --backend tilelang"
        )
    if len(chosen) > 1 and out is not None:
        raise click.UsageError(
            "a package has one sort of kernels for GPUs, for nothing in it would choose between two: "
            "--backend triton or --backend tilelang, either with cpp"
        )
    if chosen and not archs and out is None:
        from attncompiler.backends.gpu_targets import TARGETS

        package = ", or a folder for a package, --out DIR" if len(chosen) == 1 else ""
        raise click.UsageError(
            f"--backend {','.join(chosen)} needs the GPUs to compile for, "
            f"--arch NAME[,NAME] from {', '.join(TARGETS)}{package}"
        )
    for dtype in dtypes if chosen else ():
        if "tilelang" in chosen and dtype not in _GPU_DTYPES[1:]:
            raise click.UsageError(
                f"the tilelang backend multiplies bfloat16 and float16, not {dtype} (float32 as tf32, where "
                "torch allows it at a call): choose --dtype bfloat16 or float16, or --backend triton"
            )
        if dtype not in (*_GPU_DTYPES, *EIGHT_BITS):
            raise click.UsageError(
                f"the triton backend computes in float32, not in {dtype}: choose --dtype "
                f"{', '.join(_GPU_DTYPES[:-1])} or {_GPU_DTYPES[-1]}"
            )


def check_eight_bits(
    backends: Sequence[str], archs: Sequence[Target], dtypes: Sequence[str], *, backward: bool
) -> None:
    """Refuse 8-bit floats for CPUs, for GPUs that do not multiply them, and for gradients."""
    for dtype in (d for d in dtypes if d in EIGHT_BITS):
        if tuple(backends) != ("triton",):
            raise click.UsageError(f"{dtype} is for --backend triton alone; or {_INSTEAD}")
        if backward:
            raise click.UsageError(f"there are no gradients for inputs of {dtype}; {_INSTEAD}")
        for target in archs:
            if why := target.lacks(dtype):
                raise click.UsageError(f"{why}; {_INSTEAD}, or leave {target.name} out")


def compile_for_gpus(
    console: Console,
    compilation: Compilation,
    backends: Sequence[str],
    targets: Sequence[Target],
    wanted: Sequence[Wanted],
    *,
    backward: bool,
) -> GpuBuild:
    """Compile every configuration of every kernel of the GPU backends with a progress display, and choose."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from attncompiler.runtime.gpu_kernels import gpu_kernels
    from attncompiler.runtime.kernels import Kernels
    from attncompiler.tuning.gpu_build import build_gpu

    kernels = Kernels(compilation)
    groups = [
        gpu_kernels(kernels, w.tensors, w.dims, backward=backward, language=language)
        for language in _LANGUAGES
        if language in backends
        for w in wanted
    ]
    columns = TextColumn("compiling for GPUs"), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return build_gpu(groups, targets, progress=show)


def carry_tilelang(
    console: Console,
    compilation: Compilation,
    kernels: Sequence[PackagedKernel],
    targets: Sequence[Target],
) -> Carried:
    """Compile what a package of TileLang kernels carries with a progress display; nothing for other kernels."""
    from attncompiler.artifact.tilelang import carry
    from attncompiler.runtime.offline import compile_all

    with console.status("compiling TileLang kernels for the calls of a package"):
        return carry(
            compilation,
            kernels,
            targets,
            lambda requests: compile_all(requests, jobs=os.cpu_count() or 1),
        )


def report(console: Console, name: str, built: GpuBuild, *, paths: bool) -> None:
    """Print a table for each type of inputs and, with ``paths``, where binaries and sources lie in the cache."""
    from attncompiler.runtime.offline_records import Built
    from attncompiler.tuning.resource_table import resource_table

    for dtype in dict.fromkeys(row.dtype for row in built.rows):
        console.print(f"\n{name}  {dtype}")
        rows = [row for row in built.rows if row.dtype == dtype]
        console.print(resource_table(rows), no_wrap=True, crop=False, overflow="ignore")
    console.print(f"\n{'compiled':<10}{built.seconds:7.3f} s")
    if not paths:
        return
    for binary in built.binaries:
        kind = "plan of columns" if binary.transposed else binary.kind
        which = f"{binary.target.name} {kind} {binary.dtype}"
        if isinstance(binary.built, Built):
            console.print(f"binary  {which}  {binary.built.binary}")
        if binary.built.request.language == "tilelang":
            console.print(f"lowered {which}  {binary.built.text}")
    for source in dict.fromkeys(b.source for b in built.binaries):
        console.print(f"source  {source}")


def gpu_files(built: GpuBuild, known: Mapping[str, str], carried: Carried) -> dict[str, bytes]:
    """The files of a package: ``gpu/<arch>/<binary>``, and ``gpu/resources.json`` about all configurations.

    ``known`` are paths in the package by the source that lies there; other sources come along. ``carried`` are the
    files of TileLang's kernels.
    """
    files = dict(carried.files)
    entries = list(carried.table)
    for binary in (b for b in built.binaries if b.built.request.language == "triton"):
        name = f"gpu/{file_name(binary)}"
        text = binary.source.read_text()
        source = known.get(text, f"gpu/{binary.source.parent.name.rsplit('-', 1)[0]}.py")
        files[name] = binary.compiled.binary.read_bytes()
        if text not in known:
            files[source] = text.encode()
        entries.append({"file": name, "source": source, **describe(binary)})
    table = {"binaries": entries, "configurations": [row.record() for row in built.rows]}
    files["gpu/resources.json"] = (json.dumps(table, indent=1) + "\n").encode()
    return files


def file_name(binary: GpuBinary) -> str:
    """Where a binary lies in the folder of a package's GPU files."""
    dims = f"{binary.dtype}_d{binary.head_dim}_v{binary.value_dim}"
    tile = f"_{binary.config.block_m}x{binary.config.block_n}" if binary.kind == "plan" else ""
    turned = "_transposed" if binary.transposed else ""
    suffix = binary.compiled.binary.suffix
    return f"{binary.target.name}/{binary.kind}_{dims}{tile}{turned}{suffix}"


def describe(binary: GpuBinary) -> dict[str, object]:
    """What a launcher must know of a binary: the kernel, what it was compiled for, and what it takes."""
    request, built = binary.compiled.request, binary.compiled
    return {
        "arch": binary.target.name,
        "kind": binary.kind,
        "kernel": request.kernel,
        "dtype": binary.dtype,
        "head_dim": binary.head_dim,
        "value_dim": binary.value_dim,
        "num_warps": built.num_warps,
        "num_stages": request.num_stages,
        "shared": built.shared,
        "registers": built.registers,
        "signature": dict(request.signature),
        "constants": dict(request.constexprs),
        "aligned": sorted(request.aligned),
    }
