"""Turns named calls into times that can be compared: run in turns, so that a slow moment of the machine hits all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each run of one call."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of the middle run."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles over the median: 0.1 says half of the runs lie within 10 %."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = quantiles(self.seconds, n=4)
        return (high - low) / self.median

    def ratio_range(self, base: Timing) -> tuple[float, float]:
        """The quartiles of this call's seconds over those of ``base`` in the same round: how sure a ratio is."""
        ratios = [mine / theirs for mine, theirs in zip(self.seconds, base.seconds, strict=True)]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        return low, high


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    budget: float = 60.0,
    device: str = "cpu",
    warm: bool = False,
) -> dict[str, Timing]:
    """Run all calls in turn, ``rounds`` times after one warm-up, or until ``budget`` seconds are spent.

    ``warm`` says that every call ran just now and needs no warm-up.

    Every call gets the same number of runs, at least three. The order turns by one each round, so that no call
    always follows the same neighbour and finds its caches. On a ``device`` of type cuda a run's seconds are those
    between two events of its stream.
    """
    measured = _on_gpu if device == "cuda" else _seconds
    names = list(calls)
    for name in [] if warm else names:
        calls[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - start > budget:
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(measured(calls[name]))
    return {name: Timing(tuple(runs)) for name, runs in seconds.items()}


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _on_gpu(call: Callable[[], object]) -> float:
    import torch

    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000
