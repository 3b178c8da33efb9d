"""Turns a variant file into built kernels and, with ``--out``, into a Python package that runs without attncompiler."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Literal

import click

from attncompiler.commands.options import DTYPES, backend_option, variant_arguments


@click.command()
@variant_arguments
@backend_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a package DIR that needs only torch and a compiler.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(DTYPES),
    multiple=True,
    default=("float32",),
    show_default=True,
)
@click.option("--head-dim", type=click.IntRange(1, 512), default=64, show_default=True)
@click.option("--value-dim", type=click.IntRange(1, 512), help="[default: the head dim]")
@click.option("--backward", is_flag=True, help="Also the kernel of the gradients.")
def build(
    file: Path,
    name: str | None,
    settings: tuple[str, ...],
    backend: Literal["auto", "cpp"],
    out: Path | None,
    dtypes: tuple[str, ...],
    head_dim: int,
    value_dim: int | None,
    backward: bool,
) -> None:
    """Build FILE's kernels and say where their readable sources are.

    With --out DIR, write a Python package: attention(q, k, v, ...) as one function, kernels as source that its first
    call builds, the same mathematics in plain torch (dense.py), a self test (python -m DIR.selftest), a manifest and
    a README. It imports without attncompiler. A package that stands there already is replaced.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    clock = time.perf_counter()
    with console.status("importing torch"):
        import torch  # noqa: F401  its own line in the report: it takes longer than a build

        from attncompiler.artifact.backends import BACKENDS, USUAL
        from attncompiler.artifact.contents import Request, package_files
        from attncompiler.artifact.definition import Definition
        from attncompiler.artifact.publish import check_folder, publish
        from attncompiler.artifact.specialize import specializations
        from attncompiler.compiler import compile as compile_variant
        from attncompiler.variant_file import load_variant
    clock = _report("import", clock)
    if out is not None:
        check_folder(out)
    with console.status(f"deriving {file}"):
        operator = compile_variant(load_variant(file, name, settings), backend=backend)
    _report("derive", clock)
    definition = None if out is None else Definition(operator.compilation)
    dims = head_dim, value_dim or head_dim
    target = BACKENDS[USUAL if backend == "auto" else backend]
    wanted = specializations(operator.compilation, tuple(dict.fromkeys(dtypes)), *dims)
    kernels = []
    with console.status("building"):
        for kernel in target.kernels(operator.compilation, wanted, backward=backward):
            kernels.append(kernel)
            for stage, seconds in kernel.built.seconds.items():
                click.echo(
                    f"{stage:<10}{seconds:7.3f} s  {kernel.entry['kind']} {kernel.entry['dtype']}"
                )
    total = sum(sum(kernel.built.seconds.values()) for kernel in kernels)
    cached = all(kernel.built.cached for kernel in kernels)
    console.print(f"{'built':<10}{total:7.3f} s" + ("  (found in the cache)" if cached else ""))
    if out is None or definition is None:
        for kernel in kernels:
            console.print(f"source  {kernel.built.path_source}")
    else:
        package = out.resolve().name
        request = Request(
            package=package,
            backend=target,
            dtypes=tuple(dict.fromkeys(dtypes)),
            head_dim=dims[0],
            value_dim=dims[1],
            backward=backward,
            file=file.name,
            command=_command(file, operator.name, settings, package, dtypes, dims, backward),
        )
        files = package_files(definition, request, wanted, kernels)
        publish(out, files)
        for path in files:
            if "/" not in path or path.startswith("kernels/"):
                console.print(f"wrote {out / path}")
        console.print(f"test it: python -m {package}.selftest")
    for kernel in kernels:
        console.print(f"library {kernel.built.path_library}")


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
) -> str:
    """The command that makes the same package."""
    words = ["attncompiler", "build", file.name, "--name", name, "--out", package]
    words += [word for setting in settings for word in ("--set", setting)]
    words += [word for dtype in dict.fromkeys(dtypes) for word in ("--dtype", dtype)]
    words += ["--head-dim", str(dims[0]), "--value-dim", str(dims[1])]
    return shlex.join([*words, *(["--backward"] if backward else [])])
