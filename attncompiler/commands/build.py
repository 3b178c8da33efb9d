"""Turns a variant file into a built kernel: its readable source and a manifest in a folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attncompiler.commands.gpu import build_for_gpus, check_architectures
from attncompiler.commands.options import (
    DTYPES,
    arch_option,
    build_backend_option,
    torch_dtype,
    variant_arguments,
)

if TYPE_CHECKING:
    from rich.console import Console

    from attncompiler.backends.gpu_targets import Target
    from attncompiler.compiler import BuiltKernel, Operator

# A kernel by its kind, forward or backward, and its dtype.
Built = tuple[str, str]


@click.command()
@variant_arguments
@build_backend_option
@arch_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the source."
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
    backends: tuple[str, ...],
    archs: tuple[Target, ...],
    out: Path | None,
    dtypes: tuple[str, ...],
    head_dim: int,
    value_dim: int | None,
    backward: bool,
) -> None:
    """Build FILE's kernel and say where its readable source is.

    With --out the source and a manifest.json are copied there; the built library stays in the cache, where
    later runs find it.

    With --backend triton and --arch every kernel is compiled for each of these GPUs in several configurations. A table
    tells what each takes: registers and bytes spilled are those of a thread, shared memory that of a block, blocks/SM
    how many of them run on an SM at a time; the time is a model's, for 4 x 32 heads of 4096 queries and keys. Of those
    without spills one about as fast as the fastest by that model is chosen, and with --out copied to DIR/gpu.

    \b
    attncompiler build my_attention.py --backend cpp,triton --arch sm_80,sm_90,gfx942 --dtype bfloat16
    """
    check_architectures(backends, archs)
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    clock = time.perf_counter()
    with console.status("importing torch"):
        import torch  # noqa: F401  its own line in the report: it takes longer than a build

        from attncompiler.compiler import compile as compile_variant
        from attncompiler.variant_file import load_variant
    clock = _report(console, "import", clock)
    with console.status(f"deriving {file}"):
        operator = compile_variant(load_variant(file, name, settings))
    clock = _report(console, "derive", clock)
    dims = head_dim, value_dim or head_dim
    if "cpp" in backends:
        _build_cpp(console, operator, file, out, dtypes, dims, backward)
    if archs:
        build_for_gpus(console, operator.compilation, archs, dtypes, dims, out, backward=backward)


def _build_cpp(
    console: Console,
    operator: Operator,
    file: Path,
    out: Path | None,
    dtypes: tuple[str, ...],
    dims: tuple[int, int],
    backward: bool,
) -> None:
    built: dict[Built, BuiltKernel] = {}
    for dtype in dict.fromkeys(dtypes):
        for kind in ("forward", "backward") if backward else ("forward",):
            with console.status(f"building {kind} {dtype}"):
                kernel = operator.build(
                    dtype=torch_dtype(dtype),
                    head_dim=dims[0],
                    value_dim=dims[1],
                    backward=kind == "backward",
                )
            built[kind, dtype] = kernel
            for stage, seconds in kernel.seconds.items():
                console.print(f"{stage:<10}{seconds:7.3f} s  {kind} {dtype}")
    total = sum(sum(kernel.seconds.values()) for kernel in built.values())
    cached = all(kernel.cached for kernel in built.values())
    console.print(f"{'built':<10}{total:7.3f} s" + ("  (found in the cache)" if cached else ""))
    manifest = _manifest(file, operator.name, *dims, built)
    if out is not None:
        for path in _publish(out, built, manifest):
            console.print(f"wrote {path}")
    else:
        for kernel in built.values():
            console.print(f"source  {kernel.path_source}")
    for kernel in built.values():
        console.print(f"library {kernel.path_library}")


def _report(console: object, stage: str, since: float) -> float:
    now = time.perf_counter()
    click.echo(f"{stage:<10}{now - since:7.3f} s")
    return now


def _manifest(
    file: Path, name: str, head_dim: int, value_dim: int, built: dict[Built, BuiltKernel]
) -> dict[str, object]:
    from importlib.metadata import version

    return {
        "variant": name,
        "file": file.name,
        "attncompiler": version("attncompiler"),
        "head_dim": head_dim,
        "value_dim": value_dim,
        "kernels": [
            {
                "kind": kind,
                "dtype": dtype,
                "source": _source_name(kind, dtype, kernel),
                "library": str(kernel.path_library),
                "seconds": {stage: round(t, 4) for stage, t in kernel.seconds.items()},
                "cached": kernel.cached,
            }
            for (kind, dtype), kernel in built.items()
        ],
    }


def _source_name(kind: str, dtype: str, kernel: BuiltKernel) -> str:
    return f"{kind}_{dtype}{kernel.path_source.suffix}"


def _publish(out: Path, built: dict[Built, BuiltKernel], manifest: dict[str, object]) -> list[Path]:
    """Write everything into a folder beside ``out``, then rename: a stop half-way leaves nothing half-written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as part:
        for (kind, dtype), kernel in built.items():
            shutil.copyfile(kernel.path_source, Path(part) / _source_name(kind, dtype, kernel))
        (Path(part) / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        out.mkdir(exist_ok=True)
        # The manifest goes last: whoever finds it finds everything it names.
        names = sorted(os.listdir(part), key=lambda name: name == "manifest.json")
        for name in names:
            os.replace(Path(part) / name, out / name)
    return [out / name for name in names]
