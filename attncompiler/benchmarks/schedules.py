"""Says how good defaults and the cost model are: ``python -m attncompiler.benchmarks.schedules``.

For each case of the suite the default, the model's first ten schedules and others drawn from the rest are timed. What
counts: how much faster the best is than the default, and whether the best of the model's ten is as fast as the best of
all. Both are measured once more at the end, in turns. Writes bench/schedules.json.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from attncompiler.backends.cpp_cut import Kind, Schedule
from attncompiler.benchmarks.suite import CASES
from attncompiler.comparison import Size, inputs_for
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant
from attncompiler.runtime.errors import CompilerFailedError
from attncompiler.runtime.launch import Launcher
from attncompiler.tuning.cpp_tuner import CppTuner
from attncompiler.tuning.tuner import Limits, Search

FIRST = 10
# As fast: what repeated measurements of one schedule differ by.
_TIE = 0.02


@dataclass(frozen=True, slots=True)
class Verdict:
    """One case: times over the default's, of the best schedule, and of the best of the model's first."""

    case: str
    kind: Kind
    size: Size
    best: float
    best_of_first: float
    winner: str
    measured: int

    @property
    def contained(self) -> bool:
        """Whether the model's first hold a schedule as fast as the best."""
        return self.best_of_first <= self.best * (1 + _TIE)


class Explorer(CppTuner):
    """Searches broadly where a tuner would search briefly, and keeps verdicts instead of records."""

    def __init__(self, case: str, size: Size, kernels: Any, others: int) -> None:
        super().__init__(kernels)
        self.case, self.size, self.others = case, size, others
        self.verdicts: list[Verdict] = []

    def _tune(
        self,
        kind: Kind,
        spec: Any,
        wanted: frozenset[str] | None,
        situation: Any,
        prepare: Callable[[Schedule], Callable[[], object]],
    ) -> None:
        usual, *ranked = self._ranked(kind, spec, wanted, situation)
        first, rest = ranked[:FIRST], ranked[FIRST:]
        drawn = random.Random(0).sample(rest, min(self.others, len(rest)))
        search = Search([usual, *first, *drawn], prepare, refused=(CompilerFailedError,))
        trials = search.run(Limits(float("inf"), len(ranked)), lambda step: None).trials
        best = min(trials, key=lambda cut: trials[cut])
        best_of_first = min([usual, *first], key=lambda cut: trials[cut])
        again, _ = search._measured([best, best_of_first], 15)
        ratios = {cut: again.get(cut, 1.0) for cut in (best, best_of_first)}
        self.verdicts.append(
            Verdict(
                self.case,
                kind,
                self.size,
                min(1.0, *ratios.values()),
                min(1.0, ratios[best_of_first]),
                str(best),
                len(trials),
            )
        )


def explore(
    case: str, variant: Variant, size: Size, *, others: int, backward: bool
) -> list[Verdict]:
    """The verdicts on the kernels of one case."""
    operator = compile_variant(variant)
    inputs = inputs_for(variant, size)
    tokens = [x.requires_grad_(backward) for x in (inputs.q, inputs.k, inputs.v)]
    launcher = operator._engines.of(inputs.q)
    assert isinstance(launcher, Launcher)
    explorer = Explorer(case, size, operator._kernels, others)
    launcher.tuner = explorer
    with torch.set_grad_enabled(backward):
        out = operator(*tokens, **inputs.tensors)
        if backward:
            out.backward(torch.ones_like(out))
    return explorer.verdicts


def summary(verdicts: Sequence[Verdict]) -> str:
    """The two figures, in a sentence each."""
    gap = median(1 / v.best for v in verdicts) - 1
    inside = sum(v.contained for v in verdicts)
    return (
        f"The default takes {100 * gap:.0f} % longer than the best schedule found (median of {len(verdicts)}).\n"
        f"The model's first {FIRST} hold a schedule as fast as the best in {inside} of {len(verdicts)} cases."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each verdict as it comes, write them at the end."""
    parser = argparse.ArgumentParser(prog="python -m attncompiler.benchmarks.schedules")
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    parser.add_argument("--others", type=int, default=30, help="schedules beyond the model's ten")
    parser.add_argument("--backward", action="store_true", help="the kernels of gradients too")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args(arguments)
    size = Size(2048, 64, options.dtype)
    verdicts: list[Verdict] = []
    for case in CASES[: options.cases]:
        for v in explore(
            case.name, case.variant, size, others=options.others, backward=options.backward
        ):
            verdicts.append(v)
            inside = "among the first" if v.contained else "not among the first"
            print(
                f"{v.case:10} {v.kind:8} {v.size}  default {1 / v.best:.3f}x the best of {v.measured}, "
                f"best of the first {v.best_of_first:.3f}, of all {v.best:.3f} ({inside})  {v.winner}",
                flush=True,
            )
    print(summary(verdicts))
    options.out.mkdir(parents=True, exist_ok=True)
    listed = [asdict(v) for v in verdicts]
    (options.out / "schedules.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()
