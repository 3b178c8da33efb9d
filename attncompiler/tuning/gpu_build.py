"""Builds the kernels of a variant for GPUs that are not here: compiles every configuration and keeps the best one.

A configuration that spills, does not fit the target or does not compile is dropped. Of the rest, best guess first,
the first one is chosen that the cost model finds about as fast as any, for the usual size of a call; of kernels that
nothing here compiles, the first one whose shared memory fits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attncompiler.backends.gpu_targets import Target
from attncompiler.backends.triton_configs import Config
from attncompiler.runtime.errors import NoConfigurationError
from attncompiler.runtime.gpu_kernels import GpuKernel, GpuKernels
from attncompiler.runtime.offline import Result, compile_all
from attncompiler.runtime.offline_records import Built, Failed, KernelRequest, Lowered
from attncompiler.tuning.cost import Attention, attention_work, predict
from attncompiler.tuning.resource_table import ResourceRow

# What predicted times are for; head dimensions and the element type are those of the kernel.
USUAL = Attention(4, 32, 32, 4096, 4096, 64, 64)
# Smaller differences say nothing: the model leaves out what shared memory costs. The order of the lists decides then.
_CLOSE = 1.05
_KINDS = ("forward", "rows", "columns")


@dataclass(frozen=True, slots=True)
class GpuBinary:
    """One chosen binary or lowered source: kernel ``kind`` (forward, rows, columns, plan) for a type and a target.

    ``source`` is the readable Python file that it was compiled from, ``built`` its resources and where it lies.
    ``transposed`` and the sides of ``config`` say which tiles a planning kernel lists.
    """

    kind: str
    target: Target
    dtype: str
    head_dim: int
    value_dim: int
    config: Config
    built: Built | Lowered
    source: Path
    transposed: bool = False

    @property
    def compiled(self) -> Built:
        """The binary of a kernel that is compiled, as all of Triton are."""
        assert isinstance(self.built, Built)
        return self.built


@dataclass(frozen=True, slots=True)
class GpuBuild:
    """All that was compiled: a line for each configuration, and the binaries that were chosen."""

    rows: tuple[ResourceRow, ...]
    binaries: tuple[GpuBinary, ...]

    @property
    def seconds(self) -> float:
        """What the compiles took in all that were not found in the cache."""
        results = [*(row.result for row in self.rows), *(b.built for b in self.plans)]
        return sum(r.seconds for r in results if not isinstance(r, Failed) and not r.cached)

    @property
    def plans(self) -> tuple[GpuBinary, ...]:
        """The planning kernels among the binaries."""
        return tuple(b for b in self.binaries if b.kind == "plan")


Progress = Callable[[int, int], None]


def build_gpu(
    wanted: Sequence[GpuKernels],
    targets: Sequence[Target],
    *,
    jobs: int | None = None,
    progress: Progress = lambda _done, _total: None,
) -> GpuBuild:
    """Compile kernels for every target and choose; ``progress`` hears how many compiles are done, of how many.

    Raises NoConfigurationError for a kernel of which nothing is left on a target.
    """
    cases = [(k, t) for t in targets for group in wanted for k in group.kernels]
    # Kernels of two backends stand beside each other.
    cases.sort(key=lambda case: (targets.index(case[1]), _KINDS.index(case[0].kind)))
    tasks = [(k, t, config) for k, t in cases for config in k.candidates(t)]
    results = _compiled([(k.request(t, c), t) for k, t, c in tasks], jobs, progress)
    made = dict(zip(tasks, results, strict=True))
    rows: list[ResourceRow] = []
    binaries: dict[tuple[GpuKernel, Target], GpuBinary] = {}
    for kernel, target in cases:
        found = choose([(c, made[kernel, target, c]) for c in kernel.candidates(target)], kernel)
        rows += found
        binaries[kernel, target] = _binary(kernel, target, found)
    plans = list(_plans(wanted, binaries))
    planned = _compiled([(request, b.target) for b, request in plans], jobs, progress)
    for (binary, _), result in zip(plans, planned, strict=True):
        if isinstance(result, Failed):
            raise _none_left("triton plan", binary.target, binary.dtype, [result.reason])
    listed = [
        replace(b, built=r)
        for (b, _), r in zip(plans, planned, strict=True)
        if not isinstance(r, Failed)
    ]
    return GpuBuild(tuple(rows), (*binaries.values(), *listed))


def choose(results: Iterable[tuple[Config, Result]], kernel: GpuKernel) -> tuple[ResourceRow, ...]:
    """A line for each configuration; of those without problems the first that is predicted about fastest is chosen."""
    rows = [_predicted(ResourceRow(config, result), kernel) for config, result in results]
    times = [_seconds(row) for row in rows]
    fastest = min(times, default=math.inf)
    close = (i for i, t in enumerate(times) if t < math.inf and t <= _CLOSE * fastest)
    best = next(close, None)
    return tuple(replace(row, chosen=i == best) for i, row in enumerate(rows))


def _seconds(row: ResourceRow) -> float:
    """What to compare: nothing is known of kernels that are only lowered, so the order of their list decides."""
    if row.problems:
        return math.inf
    if isinstance(row.result, Lowered):
        return 0.0
    return math.inf if row.prediction is None else row.prediction.seconds


def _compiled(
    requests: list[tuple[KernelRequest, Target]], jobs: int | None, progress: Progress
) -> list[Result]:
    done = 0

    def count(_: Result) -> None:
        nonlocal done
        done += 1
        progress(done, len(requests))

    progress(0, len(requests))
    return compile_all(requests, jobs=jobs or os.cpu_count() or 1, each=count)


def _predicted(row: ResourceRow, kernel: GpuKernel) -> ResourceRow:
    if not isinstance(row.result, Built):
        return row
    call, config = kernel.call, row.config
    size = replace(USUAL, head_dim=call.head_dim, value_dim=call.value_dim, dtype=call.dtype)
    work = attention_work(size, config.block_m, config.block_n, kernel.kind, kernel.work)
    return replace(row, prediction=predict(work, row.result.target, row.result))


def _binary(kernel: GpuKernel, target: Target, rows: Sequence[ResourceRow]) -> GpuBinary:
    call = kernel.call
    for row in rows:
        if row.chosen and not isinstance(row.result, Failed):
            dims = call.dtype, call.head_dim, call.value_dim
            return GpuBinary(kernel.kind, target, *dims, row.config, row.result, kernel.source)
    reasons = [f"{r.config.block_m}x{r.config.block_n}: {'; '.join(r.problems)}" for r in rows]
    raise _none_left(f"{kernel.language} {kernel.kind}", target, call.dtype, reasons)


def _plans(
    wanted: Sequence[GpuKernels], binaries: dict[tuple[GpuKernel, Target], GpuBinary]
) -> Iterator[tuple[GpuBinary, KernelRequest]]:
    """The planning kernels for the tiles of the chosen kernels, each once; what they are, but for the binary."""
    seen = set[tuple[object, ...]]()
    for group in wanted:
        if group.plan is None:
            continue
        for (kernel, target), binary in binaries.items():
            transposed = kernel.kind == "columns"
            tile = Config(binary.config.block_m, binary.config.block_n, 4, 3)
            key = group.plan.source, target.name, tile, transposed
            if kernel in group.kernels and key not in seen:
                seen.add(key)
                request = group.plan.request(tile, transposed=transposed)
                source = group.plan.source
                plan = replace(
                    binary, kind="plan", config=tile, source=source, transposed=transposed
                )
                yield plan, request


def _none_left(
    kind: str, target: Target, dtype: str, reasons: Sequence[str]
) -> NoConfigurationError:
    return NoConfigurationError(
        kind=kind,
        arch=target.name,
        dtype=dtype,
        reasons="\n".join(f"    {r}" for r in reasons),
        other="--backend triton, " if kind.startswith("tilelang") else "",
    )
