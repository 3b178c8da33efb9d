"""Turns a variant file into built kernels and, with ``--out``, into a Python package that runs without attncompiler."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attncompiler.commands.gpu import (
    carry_tilelang,
    check_architectures,
    check_eight_bits,
    compile_for_gpus,
    gpu_files,
    report,
)
from attncompiler.commands.options import (
    DTYPES,
    EIGHT_BITS,
    arch_option,
    build_backend_option,
    variant_arguments,
)

if TYPE_CHECKING:
    from attncompiler.artifact.backend import PackagedKernel
    from attncompiler.backends.gpu_targets import Target


@click.command()
@variant_arguments
@build_backend_option
@arch_option
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a package DIR that needs only torch and a C++ compiler, Triton or, with --backend tilelang, a GPU.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice((*DTYPES, *EIGHT_BITS)),
    multiple=True,
    help="Of q, k and v; repeatable. 8-bit floats are for --backend triton. "
    "[default: float32, with --backend tilelang bfloat16]",
)
@click.option("--head-dim", type=click.IntRange(1, 512), default=64, show_default=True)
@click.option("--value-dim", type=click.IntRange(1, 512), help="[default: the head dim]")
@click.option("--backward", is_flag=True, help="Also the kernel of the gradients.")
def build(
    file: Path,
    name: str | None,
    settings: tuple[str, ...],
    backends: tuple[str, ...],
    archs: tuple[Target, ...],
    out: Path | None,
    dtypes: tuple[str, ...],
    head_dim: int,
    value_dim: int | None,
    backward: bool,
) -> None:
    """Build FILE's kernels and say where their readable sources are.

    With --out DIR, write a Python package: attention(q, k, v, ...) as one function, kernels as source that its first
    call builds, the same mathematics in plain torch (dense.py), a self test (python -m DIR.selftest), a manifest and
    a README. It imports without attncompiler. A package that stands there already is replaced. --backend triton makes
    one for GPUs, --backend cpp,triton one for both: tensors of the CPU run C++, those of a GPU Triton. With --backend
    tilelang and --arch it carries binaries that need no TileLang where they run.

    With --backend triton or tilelang and --arch, compile every kernel for these GPUs, none of which need be here, in
    several configurations. A table tells what each takes: registers and bytes spilled are those of a thread, shared
    memory that of a block, blocks/SM how many of them an SM holds; the time is a model's, for 4 x 32 heads of 4096
    tokens. Of those without spills one is chosen that is about as fast as any by that model. With --out the package
    tries it first, and the chosen binaries and the table (resources.json) lie in DIR/gpu. TileLang's kernels are
    compiled by nvcc where it is installed, those for AMD by nobody: then a package has the source and needs TileLang.

    \b
    attncompiler build my_attention.py --backend cpp,triton --arch sm_80,sm_90,gfx942 --dtype bfloat16
    """
    dtypes = tuple(dict.fromkeys(dtypes)) or (
        ("bfloat16",) if "tilelang" in backends else ("float32",)
    )
    check_architectures(backends, archs, dtypes, out)
    check_eight_bits(backends, archs, dtypes, backward=backward)
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    clock = time.perf_counter()
    with console.status("importing torch"):
        import torch  # noqa: F401  its own line in the report: it takes longer than a build

        from attncompiler.artifact.backends import BACKENDS
        from attncompiler.artifact.contents import Request, package_files
        from attncompiler.artifact.definition import Definition
        from attncompiler.artifact.publish import check_folder, publish
        from attncompiler.artifact.specialize import specializations
        from attncompiler.artifact.triton import preferring
        from attncompiler.compiler import compile as compile_variant
        from attncompiler.variant_file import load_variant
    clock = _report("import", clock)
    if out is not None:
        check_folder(out)
    with console.status(f"deriving {file}"):
        operator = compile_variant(load_variant(file, name, settings))
    _report("derive", clock)
    definition = None if out is None else Definition(operator.compilation)
    dims = head_dim, value_dim or head_dim
    wanted = specializations(operator.compilation, dtypes, *dims)
    kernels: list[PackagedKernel] = []
    # Triton's sources go into packages; a build without --out has them in the cache, with their binaries.
    for backend in (name for name in backends if name == "cpp" or out is not None):
        with console.status("building"):
            for kernel in BACKENDS[backend].kernels(
                operator.compilation, wanted, backward=backward
            ):
                kernels.append(kernel)
                kind, dtype = kernel.entry["kind"], kernel.entry["dtype"]
                for stage, seconds in (kernel.built.seconds if kernel.built else {}).items():
                    click.echo(f"{stage:<10}{seconds:7.3f} s  {kind} {dtype}")
    libraries = [kernel.built for kernel in kernels if kernel.built is not None]
    if libraries:
        total = sum(sum(library.seconds.values()) for library in libraries)
        cached = all(library.cached for library in libraries)
        console.print(f"{'built':<10}{total:7.3f} s" + ("  (found in the cache)" if cached else ""))
    binaries = {}
    if archs:
        found = compile_for_gpus(
            console, operator.compilation, backends, archs, wanted, backward=backward
        )
        report(console, operator.name, found, paths=out is None)
        kernels = preferring(kernels, found)
        if out is not None:
            carried = carry_tilelang(console, operator.compilation, kernels, archs)
            kernels = carried.kernels
            known = {kernel.source: kernel.path for kernel in kernels}
            binaries = gpu_files(found, known, carried)
    if out is None or definition is None:
        for library in libraries:
            console.print(f"source  {library.path_source}")
    else:
        package = out.resolve().name
        request = Request(
            package=package,
            backends=tuple(BACKENDS[name] for name in backends),
            dtypes=dtypes,
            head_dim=dims[0],
            value_dim=dims[1],
            backward=backward,
            file=file.name,
            command=_command(
                file, operator.name, settings, package, dtypes, dims, backward, backends, archs
            ),
        )
        files = package_files(definition, request, wanted, kernels, binaries)
        publish(out, files)
        for path in files:
            if "/" not in path or path.startswith(("kernels/", "gpu/")):
                console.print(f"wrote {out / path}")
        console.print(f"test it: python -m {package}.selftest")
    for library in libraries:
        console.print(f"library {library.path_library}")


def _report(stage: str, since: float) -> float:
    now = time.perf_counter()
    click.echo(f"{stage:<10}{now - since:7.3f} s")
    return now


def _command(
    file: Path,
    name: str,
    settings: tuple[str, ...],
    package: str,
    dtypes: tuple[str, ...],
    dims: tuple[int, int],
    backward: bool,
    backends: tuple[str, ...],
    archs: tuple[Target, ...],
) -> str:
    """The command that makes the same package."""
    words = ["attncompiler", "build", file.name, "--name", name, "--out", package]
    words += [word for setting in settings for word in ("--set", setting)]
    words += [word for dtype in dtypes for word in ("--dtype", dtype)]
    words += ["--head-dim", str(dims[0]), "--value-dim", str(dims[1])]
    if backends != ("cpp",):
        words += ["--backend", ",".join(backends)]
    if archs:
        words += ["--arch", ",".join(t.name for t in archs)]
    return shlex.join([*words, *(["--backward"] if backward else [])])
