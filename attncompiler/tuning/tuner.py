"""Finds the fastest of many candidates: times them in an order that a model gave, against the default, in turns.

Nothing here knows a backend. A candidate's figure is the ratio of its time to the default's in the same rounds, which a
machine that is slow for a while does not change.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

from attncompiler.timing import interleaved
from attncompiler.tuning.records import measuring

C = TypeVar("C", bound=Hashable)
Call = Callable[[], object]

_BATCH = 4
# Rounds of a first look and of the last comparison; a run lasts this many seconds at least.
_LOOK, _FINAL, _LEAST = 3, 9, 2e-3
# What counts as better, for going on and for giving up the default.
_PROGRESS, _WORTH = 0.01, 0.02
_FINALISTS = 3
_BUDGET = 20.0  # seconds of one comparison
_BUILDERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a search ends: after ``seconds``, or ``patience`` candidates in a row that were no better than the best."""

    seconds: float = 30.0
    patience: int = 24


@dataclass(frozen=True, slots=True)
class Step(Generic[C]):
    """Where a search stands: ``done`` of ``total`` candidates, the best of which takes ``ratio`` of the default."""

    done: int
    total: int
    best: C
    ratio: float


@dataclass(frozen=True, slots=True)
class Outcome(Generic[C]):
    """The winner, its time over the default's, its seconds, and every candidate's ratio, infinite if it cannot run."""

    winner: C
    ratio: float
    seconds: float
    trials: dict[C, float]


class Search(Generic[C]):
    """One search. ``candidates`` stand in the order of a model, but for the first one, which is the default.

    ``prepare`` builds a candidate and gives its call; a candidate drops out by what that, or the first run, raises of
    ``refused``. ``known`` are ratios of an earlier search, ``device`` is the type of what the calls run on.
    """

    def __init__(
        self,
        candidates: Sequence[C],
        prepare: Callable[[C], Call],
        *,
        refused: tuple[type[Exception], ...],
        known: Mapping[C, float] | None = None,
        device: str = "cpu",
    ) -> None:
        self.candidates = candidates
        self.default = candidates[0]
        self.trials = {c: r for c, r in (known or {}).items() if c in set(candidates)}
        self.trials[self.default] = 1.0
        self._prepare, self._refused, self._device = prepare, refused, device
        self._calls = {self.default: prepare(self.default)}
        # Short calls are repeated, all as often as the default.
        self._calls[self.default]()
        begin = time.perf_counter()
        self._calls[self.default]()
        self._repeats = max(1, math.ceil(_LEAST / (time.perf_counter() - begin + 1e-9)))

    def run(self, limits: Limits, log: Callable[[Step[C]], None]) -> Outcome[C]:
        """Time candidates until a limit is reached, then compare the best few again; ``log`` hears of every step."""
        begin = time.perf_counter()
        left = [c for c in self.candidates if c not in self.trials]
        best, since = min(self.trials, key=lambda c: self.trials[c]), 0
        for at in range(0, len(left), _BATCH):
            if since >= limits.patience or time.perf_counter() - begin > limits.seconds:
                break
            batch = left[at : at + _BATCH]
            ratios, _ = self._measured(batch, _LOOK)
            self.trials |= {c: ratios.get(c, math.inf) for c in batch}
            fastest = min(batch, key=lambda c: self.trials[c])
            since += len(batch)
            if self.trials[fastest] < self.trials[best] * (1 - _PROGRESS):
                best, since = fastest, 0
            log(Step(at + len(batch), len(left), best, self.trials[best]))
        return self._decided()

    def _decided(self) -> Outcome[C]:
        """The winner of the last comparison; a tie keeps the default."""
        order = sorted(self.trials, key=lambda c: self.trials[c])
        finalists = [c for c in order if c != self.default and self.trials[c] < math.inf]
        ratios, seconds = self._measured(finalists[:_FINALISTS], _FINAL)
        self.trials |= ratios
        winner = min(ratios, key=lambda c: ratios[c], default=self.default)
        if ratios.get(winner, 1.0) > 1 - _WORTH:
            winner = self.default
        return Outcome(winner, self.trials[winner], seconds[winner], self.trials)

    def _measured(self, batch: Sequence[C], rounds: int) -> tuple[dict[C, float], dict[C, float]]:
        """Ratios of the candidates that run, and seconds of a call of theirs and of the default's."""
        self._build([c for c in batch if c not in self._calls])
        running = [self.default, *(c for c in batch if c in self._calls)]
        calls = {str(i): self._repeated(self._calls[c]) for i, c in enumerate(running)}
        with measuring():
            times = interleaved(calls, rounds=rounds, budget=_BUDGET, device=self._device)
        runs = [times[str(i)].seconds for i in range(len(running))]
        ratios = {
            c: median(mine / usual for mine, usual in zip(found, runs[0], strict=True))
            for c, found in zip(running[1:], runs[1:], strict=True)
        }
        return ratios, {c: median(r) / self._repeats for c, r in zip(running, runs, strict=True)}

    def _repeated(self, call: Call) -> Call:
        def again() -> None:
            for _ in range(self._repeats):
                call()

        return again

    def _build(self, batch: Sequence[C]) -> None:
        """Build candidates side by side, and run each once."""

        def tried(candidate: C) -> Call | None:
            try:
                return self._prepare(candidate)
            except self._refused:
                return None

        with ThreadPoolExecutor(_BUILDERS) as threads:
            made = list(threads.map(tried, batch))
        for candidate, call in zip(batch, made, strict=True):
            with contextlib.suppress(*self._refused):
                if call is not None:
                    call()
                    self._calls[candidate] = call
