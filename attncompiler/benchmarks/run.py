"""Turns a plan into a report: every case at every size against everything that can express it, a line at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from attncompiler.benchmarks import build_time, memory, sparse
from attncompiler.benchmarks.gpu_peers import gpu_makers
from attncompiler.benchmarks.machine import machine
from attncompiler.benchmarks.plan import Plan
from attncompiler.benchmarks.report import (
    FORWARD,
    OURS,
    SWEEP,
    TRAINING,
    BuildLine,
    Line,
    MemoryLine,
    Peak,
    Report,
    SparseLine,
)
from attncompiler.benchmarks.roofline import better, least_seconds, peaks
from attncompiler.benchmarks.suite import Case, case
from attncompiler.comparison import Size, compare, inputs_for
from attncompiler.compiler import compile as compile_variant
from attncompiler.torch_formulas import Inputs

Result = Line | SparseLine | MemoryLine | BuildLine
Show = Callable[[Result], None]
_Result = TypeVar("_Result", Line, SparseLine, MemoryLine, BuildLine)


@dataclass(slots=True)
class Runner:
    """One run of the suite; ``show`` hears of each result when it is there."""

    plan: Plan
    cases: Sequence[Case]
    rounds: int
    show: Show
    whole: bool = True
    quick: bool = False
    _peaks: dict[str, Peak] = field(default_factory=dict)

    def report(self) -> Report:
        """Measure everything. Sweep, sparse masks, memory and build times belong to a run of all cases."""
        lines: list[Line] = list(self._heard(self._lines()))
        sparse_lines: list[SparseLine] = []
        memory_lines: list[MemoryLine] = []
        build_lines: list[BuildLine] = []
        if self.whole:
            lines += self._heard(self._sweep())
            sparse_lines = list(self._heard(self._sparse()))
            memory_lines = list(self._heard(self._memory()))
            build_lines = list(self._heard(self._build()))
        finished = [
            replace(
                line,
                least=least_seconds(
                    line.size, line.density, self._peaks[line.size.dtype], line.section
                ),
            )
            for line in lines
        ]
        return Report(
            self.plan.device,
            machine(self.plan.device),
            self.quick,
            tuple(self._peaks.values()),
            tuple(finished),
            tuple(sparse_lines),
            tuple(memory_lines),
            tuple(build_lines),
        )

    def _heard(self, results: Iterator[_Result]) -> Iterator[_Result]:
        for result in results:
            self.show(result)
            yield result

    def _lines(self) -> Iterator[Line]:
        plan = self.plan
        for each in self.cases:
            flex = each.name in plan.flex_cases
            wide = plan.wide if each.name in plan.wide_cases else ()
            for size in (*plan.forward, *wide):
                yield self._line(FORWARD, each, size, flex=flex)
            for size in plan.training:
                yield self._line(TRAINING, each, size, flex=flex)

    def _sweep(self) -> Iterator[Line]:
        for size in self.plan.sweep:
            flex = size.length in self.plan.sweep_flex
            yield self._line(SWEEP, case("causal"), size, flex=flex)

    def _sparse(self) -> Iterator[SparseLine]:
        for size in self.plan.sparse:
            for variant in sparse.MASKS:
                yield sparse.measure(
                    variant, size, device=self.plan.device, backend=self.plan.backend,
                    flex=bool(self.plan.sweep_flex), rounds=self.rounds,
                )  # fmt: skip

    def _memory(self) -> Iterator[MemoryLine]:
        if memory.why_not(self.plan.device) is not None:
            return
        flex = ("flex",) if self.plan.flex_cases else ()
        for name in self.plan.memory_cases:
            for size in self.plan.memory:
                for training in (False, True):
                    yield memory.measure(
                        case(name), size, (*self.plan.sdpa, *flex, "dense"), training=training,
                        device=self.plan.device, backend=self.plan.backend,
                    )  # fmt: skip

    def _build(self) -> Iterator[BuildLine]:
        for name in (OURS, "flex") if self.plan.flex_cases else (OURS,):
            yield from build_time.measure(name, self.plan.build, self.plan.device)

    def _line(self, section: str, each: Case, size: Size, *, flex: bool) -> Line:
        plan = self.plan
        inputs = inputs_for(each.variant, size, device=plan.device)
        training = section == TRAINING
        elements = size.batch * size.heads * size.length**2
        # The sweep shows how cost grows: SDPA's slow backends and matrices would end it early.
        small = elements <= plan.dense_limit
        peers = [
            name
            for name in plan.sdpa
            if small or name not in ("sdpa math", "sdpa mask")
        ]  # fmt: skip
        rows = compare(
            each.variant, inputs, (*peers, *(["flex"] if flex else []), *(["dense"] if small else [])),
            backend=plan.backend, rounds=self.rounds, budget=plan.budget, training=training,
            others=gpu_makers(each, plan.device, training=training),
        )  # fmt: skip
        # Beside every line: a limit that was measured once, in a slow moment, would be none.
        peak = peaks(plan.device, size.dtype).named(size.dtype)
        self._peaks[size.dtype] = better(self._peaks.get(size.dtype), peak)
        return Line(section, each.name, size, tuple(rows), _density(each, inputs))


def _density(each: Case, inputs: Inputs) -> float:
    """The share of pairs that the mask allows."""
    sizes = inputs.sizes
    tables = {name: x.cpu() for name, x in inputs.tensors.items()}
    tiles = compile_variant(each.variant).tile_map(
        (sizes["M"], sizes["N"]), heads=sizes["H"], **tables
    )
    return float(tiles.density)
