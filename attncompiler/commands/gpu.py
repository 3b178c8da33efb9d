"""Turns a compilation into GPU binaries, a table of what they take, and with ``--out`` into files in a folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from attncompiler.backends.gpu_targets import Target
    from attncompiler.compiler import Compilation
    from attncompiler.tuning.gpu_build import GpuBinary, GpuBuild

_GPU_DTYPES = ("float32", "bfloat16", "float16")


def check_architectures(backends: Sequence[str], archs: Sequence[Target]) -> None:
    """Refuse GPU architectures without a backend for them, and the reverse."""
    if archs and "triton" not in backends:
        raise click.UsageError(
            "--arch names GPUs, for which Triton makes kernels: add --backend triton, "
            "or --backend cpp,triton for the CPU's kernels too"
        )
    if "triton" in backends and not archs:
        from attncompiler.backends.gpu_targets import TARGETS

        raise click.UsageError(
            f"--backend triton needs the GPUs to compile for: --arch NAME[,NAME] from {', '.join(TARGETS)}"
        )


def build_for_gpus(
    console: Console,
    compilation: Compilation,
    targets: Sequence[Target],
    dtypes: Sequence[str],
    dims: tuple[int, int],
    out: Path | None,
    *,
    backward: bool,
) -> GpuBuild:
    """Compile and choose with a progress display, print the tables and where the chosen binaries are."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from attncompiler.runtime.gpu_kernels import gpu_kernels, usual_types
    from attncompiler.runtime.kernels import Kernels
    from attncompiler.tuning.gpu_build import build_gpu
    from attncompiler.tuning.resource_table import resource_table

    for dtype in dtypes:
        if dtype not in _GPU_DTYPES:
            raise click.UsageError(
                f"the triton backend computes in float32, not in {dtype}: choose --dtype "
                f"{', '.join(_GPU_DTYPES[:-1])} or {_GPU_DTYPES[-1]}"
            )
    kernels, types = Kernels(compilation), usual_types(compilation)
    wanted = [
        gpu_kernels(kernels, types, (dtype, *dims), backward=backward)
        for dtype in dict.fromkeys(dtypes)
    ]
    columns = TextColumn("compiling for GPUs"), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("")
        built = build_gpu(
            wanted,
            targets,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for group in wanted:
        dtype = group.kernels[0].call.dtype
        sources = {k.source for k in group.kernels}
        rows = [r for r in built.rows if r.result.request.source in sources and r.dtype == dtype]
        console.print(f"\n{kernels.name}  {dtype}  head_dim {dims[0]}  value_dim {dims[1]}")
        console.print(resource_table(rows), no_wrap=True, crop=False, overflow="ignore")
    console.print(f"\n{'compiled':<10}{built.seconds:7.3f} s for {len(targets)} GPUs")
    files = [] if out is None else publish(out / "gpu", built)
    for path in files:
        console.print(f"wrote {path}")
    for binary in () if files else built.binaries:
        console.print(f"binary  {_title(binary)}  {binary.built.binary}")
    for source in () if files else dict.fromkeys(b.source for b in built.binaries):
        console.print(f"source  {source}")
    return built


def _title(binary: GpuBinary) -> str:
    kind = "plan of columns" if binary.transposed else binary.kind
    return f"{binary.target.name} {kind} {binary.dtype}"


def publish(folder: Path, built: GpuBuild) -> list[Path]:
    """Write the binaries as ``<arch>/<name>``, their sources, and ``resources.json`` about all that was compiled.

    Everything is written beside ``folder`` first, then renamed into it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        part, entries = Path(made), []
        for binary in built.binaries:
            name, source = file_name(binary), f"{binary.source.parent.name.rsplit('-', 1)[0]}.py"
            (part / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(binary.built.binary, part / name)
            shutil.copyfile(binary.source, part / source)
            entries.append({"file": name, "source": source, **describe(binary)})
        report = {"binaries": entries, "configurations": [row.record() for row in built.rows]}
        (part / "resources.json").write_text(json.dumps(report, indent=2) + "\n")
        found = sorted(p.relative_to(part) for p in part.rglob("*") if p.is_file())
        # The table goes last: whoever finds it finds everything it names.
        for path in sorted(found, key=lambda p: p.name == "resources.json"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(part / path, folder / path)
    return [folder / path for path in found]


def file_name(binary: GpuBinary) -> str:
    """Where a binary lies in the folder of a build."""
    dims = f"{binary.dtype}_d{binary.head_dim}_v{binary.value_dim}"
    tile = f"_{binary.config.block_m}x{binary.config.block_n}" if binary.kind == "plan" else ""
    turned = "_transposed" if binary.transposed else ""
    suffix = binary.built.binary.suffix
    return f"{binary.target.name}/{binary.kind}_{dims}{tile}{turned}{suffix}"


def describe(binary: GpuBinary) -> dict[str, object]:
    """What a launcher must know of a binary: the kernel, what it was compiled for, and what it takes."""
    request, built = binary.built.request, binary.built
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
