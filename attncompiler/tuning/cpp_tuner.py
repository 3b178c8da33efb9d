"""Tunes the C++ kernels of an operator on its own calls: ranks schedules by the model, times them, keeps winners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

from torch import Tensor

from attncompiler.backends.cpp_context import Specialization
from attncompiler.backends.cpp_cut import Kind, Schedule
from attncompiler.backends.cpp_schedule import space
from attncompiler.backends.triton_work import PairWork, backward_work, forward_work
from attncompiler.runtime.call_checks import ELEMENT_TYPES
from attncompiler.runtime.errors import CompilerFailedError
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.launch import Launcher
from attncompiler.runtime.situation import Bucket, Situation
from attncompiler.runtime.tile_tables import Sizes
from attncompiler.tuning.cpu_cost import Load, estimate
from attncompiler.tuning.cpu_device import cpu_device
from attncompiler.tuning.records import Record
from attncompiler.tuning.tuned import Tuned
from attncompiler.tuning.tuner import Limits, Outcome, Search, Step


@dataclass(slots=True)
class CppTuner:
    """Tunes the kernel of a call before it runs, once for each class of calls.

    ``again`` searches although there is a complete record. ``hear`` is told of each step, ``found`` collects results.
    """

    kernels: Kernels
    limits: Limits = field(default_factory=Limits)
    again: bool = False
    hear: Callable[[Kind, Step[Schedule]], None] = lambda kind, step: None
    found: list[Tuned] = field(default_factory=list)
    _seen: set[object] = field(default_factory=set)

    def forward(self, *call: Any) -> None:
        """Before ``Launcher.forward`` runs with these arguments."""
        q, k, v, captured, q_start, _, numbers = call[:7]
        signature = self.kernels.signature
        tensors = {t.name: x for t, x in zip(signature.tensors, captured, strict=True)}
        params = {p.name: x for p, x in zip(signature.params, numbers, strict=True)}
        types = tuple(_name(x) for x in captured)
        spec = Specialization(ELEMENT_TYPES[q.dtype], q.shape[3], v.shape[3], types)
        situation = Situation(Sizes.of(q, k), q_start, params, tensors)

        def prepare(cut: Schedule) -> Callable[[], object]:
            launcher = Launcher(self.kernels.cut(cut))
            return partial(launcher.forward, *call)

        self._tune("forward", spec, None, situation, prepare)

    def backward(self, *call: Any, **named: Any) -> None:
        """Before ``Launcher.backward`` runs with these arguments."""
        (q, k, v), _, _, tensors = call
        wanted: frozenset[str] = named["wanted"]
        types = {name: _name(x) for name, x in tensors.items()}
        dims = ELEMENT_TYPES[q.dtype], q.shape[3], v.shape[3]
        spec = self.kernels.backward_specialization(types, dims, wanted)
        situation = Situation(Sizes.of(q, k), named["q_start"], named["params"], tensors)

        def prepare(cut: Schedule) -> Callable[[], object]:
            launcher = Launcher(self.kernels.cut(cut))
            return partial(launcher.backward, *call, **named)

        self._tune("backward", spec, wanted, situation, prepare)

    # ----------------------------------------------------------------------------------------------------------

    def _tune(
        self,
        kind: Kind,
        spec: Specialization,
        wanted: frozenset[str] | None,
        situation: Situation,
        prepare: Callable[[Schedule], Callable[[], object]],
    ) -> None:
        sizes = situation.sizes
        if min(sizes.batch, sizes.heads, sizes.queries, sizes.keys) == 0:
            return
        key = (spec, wanted, sizes, situation.threads)
        if key in self._seen:
            return
        self._seen.add(key)
        bucket = situation.bucket(self.kernels.density(spec.dtype, situation))
        winners = self.kernels.winners(spec, wanted)
        record = winners.record(bucket)
        if record is not None and record.complete and not self.again:
            winner = Schedule(**record.choice)
            count = len(record.trials)
            known = Tuned(kind, bucket, spec, winner, record.ratio, record.seconds, count, True)
            self.found.append(known)
            return
        ranked = self._ranked(kind, spec, wanted, situation)
        told = () if record is None or self.again else record.trials
        trials = {Schedule(**fields): ratio for fields, ratio in told}
        search = Search(ranked, prepare, refused=(CompilerFailedError,), known=trials)
        words = f"{kind} {spec.dtype} {sizes}"

        def log(step: Step[Schedule]) -> None:
            winners.keep(bucket, _record(bucket, search.trials, words, None))
            self.hear(kind, step)

        outcome = search.run(self.limits, log)
        winners.keep(bucket, _record(bucket, outcome.trials, words, outcome))
        self.kernels.forget_choices()
        self.found.append(
            Tuned(
                kind,
                bucket,
                spec,
                outcome.winner,
                outcome.ratio,
                outcome.seconds,
                len(outcome.trials),
                known=False,
            )
        )

    def _ranked(
        self,
        kind: Kind,
        spec: Specialization,
        wanted: frozenset[str] | None,
        situation: Situation,
    ) -> list[Schedule]:
        """The default, then every other schedule, the fastest by the model first.

        Of schedules that differ in how work is shared out alone, which matters little, one comes early.
        """
        device = cpu_device(spec.dtype)
        load = load_of(self.kernels, kind, spec, wanted, situation)
        usual, *others = space(kind, device.machine, spec)
        return [usual, *in_turns(usual, others, lambda cut: estimate(load, cut, device).seconds)]


def in_turns(
    usual: Schedule, cuts: Sequence[Schedule], seconds: Callable[[Schedule], float]
) -> list[Schedule]:
    """By predicted time: first the best schedule of each tile and register shape, then the second best of each ..."""

    def shape(cut: Schedule) -> tuple[int, ...]:
        return cut.tile, cut.rows, cut.vectors, cut.keys

    def unlike(cut: Schedule) -> int:
        """How many ways of sharing differ from the default's: of equals the likest one comes first."""
        return (
            (cut.blocks != usual.blocks) + (cut.slots != usual.slots) + (cut.tasks != usual.tasks)
        )

    times = {cut: round(seconds(cut), 9) for cut in cuts}
    met = Counter([shape(usual)])
    turns = {}
    for cut in sorted(cuts, key=lambda cut: (times[cut], unlike(cut))):
        turns[cut] = met[shape(cut)]
        met[shape(cut)] += 1
    return sorted(cuts, key=lambda cut: (turns[cut], times[cut], unlike(cut)))


def load_of(
    kernels: Kernels,
    kind: Kind,
    spec: Specialization,
    wanted: frozenset[str] | None,
    situation: Situation,
) -> Load:
    """The work of a call, for the model."""
    visited = cache(partial(kernels.visited, spec.dtype, situation))
    pair = pair_work(kernels, wanted)
    return Load(kind, spec.dtype, situation.sizes, spec.head_dim, spec.value_dim, pair, visited)


def pair_work(kernels: Kernels, wanted: frozenset[str] | None) -> PairWork:
    """What a kernel does at one pair: the forward's, or that of the backward that gives gradients to ``wanted``."""
    if wanted is None:
        return forward_work(kernels.kernel)
    work = backward_work(kernels.loops(wanted), "rows")
    # One kernel does what on a GPU rows and columns do: the products of dk and dv are of its own pairs.
    return PairWork(
        work.operations, work.exponentials, work.head_products + 1, work.value_products + 1
    )


def _record(
    bucket: Bucket,
    trials: Mapping[Schedule, float],
    words: str,
    outcome: Outcome[Schedule] | None,
) -> Record:
    listed = tuple((asdict(cut), ratio) for cut, ratio in trials.items())
    if outcome is None:
        return Record(asdict(bucket), {}, 1.0, 0.0, listed, words)
    return Record(
        asdict(bucket), asdict(outcome.winner), outcome.ratio, outcome.seconds, listed, words
    )


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
