"""The search for the fastest candidate, with times that the tests make up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from attncompiler.timing import Timing
from attncompiler.tuning import tuner
from attncompiler.tuning.tuner import Limits, Search, Step


class RefusedError(Exception):
    """A candidate that cannot run."""


class Stage:
    """Candidates are numbers: what a call of theirs takes, in seconds; negative ones cannot be built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built: list[float] = []
        self.steps: list[Step[float]] = []
        self.clock = 0.0
        monkeypatch.setattr(tuner, "interleaved", self._interleaved)

    def prepare(self, candidate: float) -> Callable[[], object]:
        self.built.append(candidate)
        if candidate < 0:
            raise RefusedError
        return lambda: candidate

    def search(
        self, *candidates: float, known: Mapping[float, float] | None = None
    ) -> Search[float]:
        made = Search(candidates, self.prepare, refused=(RefusedError,), known=known)
        made._repeats = 1
        return made

    def _interleaved(
        self, calls: Mapping[str, Callable[[], Any]], *, rounds: int, budget: float, device: str
    ) -> dict[str, Timing]:
        # What a wrapped call takes is what it was made from.
        def seconds(call: Callable[[], Any]) -> float:
            inner = call.__closure__
            assert inner is not None
            found = next(c.cell_contents for c in inner if callable(c.cell_contents))
            return float(found())

        return {n: Timing((seconds(call),) * rounds) for n, call in calls.items()}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_the_fastest_wins(stage: Stage) -> None:
    out = stage.search(10.0, 9.0, 5.0, 7.0, 12.0).run(Limits(), stage.steps.append)
    assert (out.winner, out.ratio, out.seconds) == (5.0, 0.5, 5.0)
    assert out.trials == {10.0: 1.0, 9.0: 0.9, 5.0: 0.5, 7.0: 0.7, 12.0: 1.2}
    assert stage.steps[-1] == Step(4, 4, 5.0, 0.5)


def test_a_tie_keeps_the_default(stage: Stage) -> None:
    out = stage.search(10.0, 9.9, 9.95).run(Limits(), stage.steps.append)
    assert (out.winner, out.ratio, out.seconds) == (10.0, 1.0, 10.0)


def test_what_cannot_run_drops_out(stage: Stage) -> None:
    out = stage.search(10.0, -1.0, 8.0, -2.0).run(Limits(), stage.steps.append)
    assert out.winner == 8.0
    assert out.trials[-1.0] == float("inf")


def test_nothing_else_can_run(stage: Stage) -> None:
    out = stage.search(10.0, -1.0, -2.0).run(Limits(), stage.steps.append)
    assert (out.winner, out.ratio) == (10.0, 1.0)


def test_only_the_default(stage: Stage) -> None:
    assert stage.search(10.0).run(Limits(), stage.steps.append).winner == 10.0


def test_it_stops_when_nothing_better_turns_up(stage: Stage) -> None:
    others = [11.0 + n for n in range(40)]
    out = stage.search(10.0, 8.0, *others).run(Limits(patience=8), stage.steps.append)
    assert out.winner == 8.0
    # A batch in which the best was found, and two without progress.
    assert len(out.trials) == 13


def test_it_stops_when_the_time_is_over(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr(tuner.time, "perf_counter", lambda: float(next(now)))
    others = [9.0 - n / 10 for n in range(40)]
    out = stage.search(10.0, *others).run(Limits(seconds=10.0), stage.steps.append)
    assert 4 <= len(out.trials) <= 13


def test_it_goes_on_from_what_is_known(stage: Stage) -> None:
    known = {6.0: 0.6, 9.0: 0.9, 77.0: 0.1}
    out = stage.search(10.0, 9.0, 6.0, 8.0, known=known).run(Limits(), stage.steps.append)
    assert out.winner == 6.0
    assert 77.0 not in out.trials, "it is no candidate any more"
    assert [s.total for s in stage.steps] == [1]


def test_an_error_of_another_kind_passes(stage: Stage) -> None:
    def prepare(candidate: float) -> Callable[[], object]:
        if candidate == 1.0:
            raise ZeroDivisionError
        return lambda: candidate

    search = Search([10.0, 1.0], prepare, refused=(RefusedError,))
    with pytest.raises(ZeroDivisionError):
        search.run(Limits(), stage.steps.append)


def test_short_calls_are_repeated() -> None:
    calls: list[int] = []
    search = Search([1, 2], lambda c: lambda: calls.append(c), refused=())
    assert search._repeats > 10
    search.run(Limits(), lambda step: None)
    assert calls.count(2) > 3 * search._repeats
