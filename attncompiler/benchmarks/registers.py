"""Says which listed tiles compile clean: ``python -m attncompiler.benchmarks.registers examples/*.py``.

Compiles, for GPUs that need not be here, the first configuration of each kernel of each variant, and the next one
wherever there are complaints (spills, serialised products, more memory or registers than there are) until one is clean.
With ``--last`` it compiles the last ones alone, with ``--backend tilelang`` TileLang's instead of Triton's, with
``--grouped`` the kernels of calls of which several heads of queries share keys, where those are others: the ones of the
columns. Prints what was complained of and counts of kernels; exits with 1 where a kernel has no clean configuration.
Binaries are cached, so a second run takes what has changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from attncompiler.artifact.specialize import specializations
from attncompiler.backends.gpu_targets import Target, target_of
from attncompiler.backends.triton_configs import Config
from attncompiler.compiler import compile as compile_variant
from attncompiler.runtime.gpu_kernels import GpuKernel, gpu_kernels
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.offline import compile_all
from attncompiler.runtime.offline_records import Language
from attncompiler.tuning.resource_table import ResourceRow
from attncompiler.variant_file import load_variant

KINDS = ("forward", "rows", "columns")
ARCHS = "sm_80,sm_90,sm_100,gfx942"


@dataclass(slots=True)
class Found:
    """A kernel of a variant and what came out of its configurations, in the order of the list; ``left`` to compile."""

    variant: str
    kernel: GpuKernel
    target: Target
    left: list[Config]
    rows: list[ResourceRow] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether the last configuration that was compiled has no problems."""
        return bool(self.rows) and not self.rows[-1].problems


def kernels_of(
    kernels: Kernels,
    dtype: str,
    head_dim: int,
    value_dim: int,
    language: Language,
    *,
    grouped: bool = False,
) -> Iterator[GpuKernel]:
    """The forward kernel of training and the two backward kernels of a variant; ``grouped``: those for shared keys."""
    (wanted,) = specializations(kernels.compilation, [dtype], head_dim, value_dim)
    made = gpu_kernels(kernels, wanted.tensors, wanted.dims, backward=True, language=language)
    for kernel in made.kernels:
        if not grouped:
            yield kernel
        elif kernel.kind == "columns":
            yield replace(kernel, call=replace(kernel.call, alone=False))


def sweep(found: Sequence[Found], jobs: int) -> None:
    """Compile the first configurations of all, then the next ones of those that are not clean."""
    while todo := [f for f in found if f.left and not f.clean]:
        configs = [f.left.pop(0) for f in todo]
        requests = [
            (f.kernel.request(f.target, c), f.target) for f, c in zip(todo, configs, strict=True)
        ]
        results = compile_all(requests, timeout_s=300, jobs=jobs)
        for f, config, result in zip(todo, configs, results, strict=True):
            f.rows.append(ResourceRow(config, result))


def complaints(found: Sequence[Found]) -> Iterator[str]:
    """A line for each configuration with problems."""
    for f in found:
        for number, row in enumerate(f.rows, 1):
            if row.problems:
                config = row.config
                shape = (
                    f"{config.block_m}x{config.block_n} {config.num_warps}w {config.num_stages}s"
                )
                shape += f" by {config.chunk}" if config.chunk else ""
                which = f"{f.variant} {f.target.name} {f.kernel.kind}"
                yield f"{which:46} {number}: {shape:16} {'; '.join(row.problems)}"


def summary(case: str, found: Sequence[Found]) -> Iterator[str]:
    """A line for each kind of kernel: how many there are, in how many the first is clean, the second, a later one."""
    for kind in KINDS:
        mine = [f for f in found if f.kernel.kind == kind]
        clean = [len(f.rows) if f.clean else 0 for f in mine]
        counts = (
            len(mine),
            clean.count(1),
            clean.count(2),
            sum(n > 2 for n in clean),
            clean.count(0),
        )
        yield f"{case:28} {kind:8}" + "".join(f"{n:8}" for n in counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile for all that was asked for, print each part as it is done."""
    parser = argparse.ArgumentParser(prog="python -m attncompiler.benchmarks.registers")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--backend", choices=("triton", "tilelang"), default="triton")
    parser.add_argument("--arch", default=ARCHS, help="[default: %(default)s]")
    parser.add_argument("--dtype", default="bfloat16", help="[default: %(default)s]")
    parser.add_argument("--dims", default="64,128", help="head_dim or head_dim:value_dim, several")
    parser.add_argument("--last", action="store_true", help="the last of each list instead")
    parser.add_argument("--grouped", action="store_true", help="kernels for shared keys instead")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args(arguments)
    variants = {
        f.stem: Kernels(compile_variant(load_variant(f)).compilation) for f in options.files
    }
    lines: list[str] = []
    stuck = False
    for arch, dtype, dims in product(
        *(getattr(options, n).split(",") for n in ("arch", "dtype", "dims"))
    ):
        head_dim, _, value_dim = dims.partition(":")
        sizes = int(head_dim), int(value_dim or head_dim)
        target = target_of(arch)
        found = [
            Found(name, kernel, target, list(kernel.configs(target))[-1 if options.last else 0 :])
            for name, kernels in variants.items()
            for kernel in kernels_of(
                kernels, dtype, *sizes, options.backend, grouped=options.grouped
            )
        ]
        sweep(found, options.jobs)
        case = f"{arch} {dtype} {dims}"
        print(case, *complaints(found), sep="\n", flush=True)
        lines += summary(case, found)
        stuck |= not all(f.clean for f in found)
    heading = f"{'':28} {'kernel':8}" + "".join(
        f"{h:>8}" for h in ("of", "first", "second", "later", "none")
    )
    print(heading, *lines, sep="\n")
    return int(stuck)


if __name__ == "__main__":
    sys.exit(main())
