"""Chooses between the backends of a GPU: by records of earlier comparisons, or by a comparison of tuned kernels.

A call runs with each backend, which tunes its own kernels first; then they are timed in turns. The forward and the
backward are compared apart. A backend whose results differ from those of the usual one loses, with a warning.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from attncompiler.backends.cpp_context import Specialization
from attncompiler.errors import AttnCompilerError
from attncompiler.ir.program import TensorDecl
from attncompiler.runtime.backward_plan import Gradients
from attncompiler.runtime.cache import content_key
from attncompiler.runtime.gpu_choice import GpuChoice
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.listed_tilings import device_name
from attncompiler.runtime.situation import Bucket, Situation
from attncompiler.runtime.triton_sources import TritonSources
from attncompiler.tuning.gpu_tuner import (
    backward_call,
    code_of,
    forward_call,
    out_of_resources,
    versions,
)
from attncompiler.tuning.records import Record, folder_of, read, write
from attncompiler.tuning.tuned import Tuned
from attncompiler.tuning.tuner import Limits, Outcome, Search, Step

Way = Literal["forward", "backward"]
# By how much of the largest number two backends may differ: a few roundings to 16 bits, long sums in float32, TF32.
_UNITS, _SUMS, _TF32 = 8, 1e-4, 4e-3


@dataclass(slots=True)
class GpuJudge:
    """Names the backend of a call; without ``limits`` it only looks for records. Fields are those of ``GpuTuner``."""

    kernels: Kernels
    limits: Limits | None = None
    again: bool = False
    hear: Callable[[str, Step[str]], None] = lambda kind, step: None
    found: list[Tuned] = field(default_factory=list)
    _keys: dict[tuple[object, ...], Path] = field(default_factory=dict)

    def forward(self, choice: GpuChoice, call: tuple[Any, ...]) -> str:
        """The fastest backend for ``choice.forward(*call)``."""
        spec, situation = forward_call(self.kernels, call)

        def prepare(name: str) -> Callable[[], object]:
            return partial(choice.engines[name].forward, *call)

        return self._decide(choice, "forward", None, spec, situation, prepare, call[0].device)

    def backward(self, choice: GpuChoice, call: tuple[Any, ...], named: Mapping[str, Any]) -> str:
        """The fastest backend for ``choice.backward(*call, **named)``."""
        spec, situation = backward_call(self.kernels, call, named)

        def prepare(name: str) -> Callable[[], object]:
            return partial(choice.engines[name].backward, *call, **named)

        wanted, device = named["wanted"], call[0][0].device
        return self._decide(choice, "backward", wanted, spec, situation, prepare, device)

    # ----------------------------------------------------------------------------------------------------------

    def _decide(
        self,
        choice: GpuChoice,
        way: Way,
        wanted: frozenset[str] | None,
        spec: Specialization,
        situation: Situation,
        prepare: Callable[[str], Callable[[], object]],
        device: torch.device,
    ) -> str:
        sizes = situation.sizes
        if min(sizes.batch, sizes.heads, sizes.queries, sizes.keys) == 0:
            return choice.usual
        folder = self._folder(choice, way, wanted, spec, device, situation)
        if self.limits is None and not folder.is_dir():
            return choice.usual
        bucket = situation.bucket(self.kernels.density("float32", situation))
        record = read(folder, str(bucket))
        known = record is not None and record.complete and not self.again
        if not known and self.limits is not None:
            record = self._compared(choice, way, folder, bucket, prepare, device)
        if record is None or record.choice.get("backend") not in choice.engines:
            return choice.usual
        winner: str = record.choice["backend"]
        count = len(record.trials)
        kind = f"{way} backend"
        self.found.append(
            Tuned(kind, bucket, spec, winner, record.ratio, record.seconds, count, known)
        )
        return winner

    def _compared(
        self,
        choice: GpuChoice,
        way: Way,
        folder: Path,
        bucket: Bucket,
        prepare: Callable[[str], Callable[[], object]],
        device: torch.device,
    ) -> Record:
        """The record of a comparison. A backend that refuses the call loses."""
        assert self.limits is not None
        names = [choice.usual, *(name for name in choice.engines if name != choice.usual)]
        refused = RuntimeError, AttnCompilerError, out_of_resources()
        kind = "cuda" if device.type == "cuda" else "cpu"

        def trusted(name: str) -> Callable[[], object]:
            call = prepare(name)
            if name != choice.usual:
                difference = _difference(call(), prepare(choice.usual)())
                if difference:
                    told = f"the {way} of {self.kernels.name} differs between backends"
                    warnings.warn(
                        f"{told}: {name} and {choice.usual} {difference}. {choice.usual} runs it; please report this",
                        stacklevel=2,
                    )
                    raise RuntimeError(told)
            return call

        search = Search(names, trusted, refused=refused, device=kind)
        # Every backend has its say, whatever time its own search took.
        outcome = search.run(Limits(math.inf, len(names)), partial(self.hear, f"{way} backend"))
        record = _record(bucket, outcome, f"{way} of {bucket} on {device_name(device)}")
        write(folder, str(bucket), record)
        return record

    def _folder(
        self,
        choice: GpuChoice,
        way: Way,
        wanted: frozenset[str] | None,
        spec: Specialization,
        device: torch.device,
        situation: Situation,
    ) -> Path:
        """Where records are: the key tells apart whatever changes the machine code of either backend, and devices."""
        tf32 = torch.backends.cuda.matmul.allow_tf32
        exact = choice.engines[choice.usual].deterministic
        key = (way, wanted, spec, device, exact, tf32)
        if key not in self._keys:
            types = {n: str(x.dtype).removeprefix("torch.") for n, x in situation.tensors.items()}
            codes = []
            for name, engine in choice.engines.items():
                sources = engine.sources
                assert isinstance(sources, TritonSources)
                codes += [name, code_of(_source(sources, wanted, types))]
            told = repr((way, sorted(wanted or ()), spec, exact, tf32))
            made = content_key(*codes, told, device_name(device), versions())
            self._keys[key] = folder_of(f"{self.kernels.name}_backends", made)
        return self._keys[key]


def _difference(found: object, usual: object) -> str:
    """How far results are apart where that is more than rounding explains; empty where it is not."""
    for x, y in zip(_results(found), _results(usual), strict=True):
        scale = y[y.isfinite()].abs().max().item() if y.isfinite().any() else 0.0
        wide = _TF32 if torch.backends.cuda.matmul.allow_tf32 else _SUMS
        allowed = scale * max(_UNITS * torch.finfo(y.dtype).eps, wide)
        same = (x == y) | (x.isnan() & y.isnan()) | ((x - y).abs() <= allowed)
        if not same.all():
            apart = (x.double() - y.double()).abs().nan_to_num(nan=math.inf).max().item()
            return f"are {apart:.2g} apart, where numbers go up to {scale:.2g}"
    return ""


def _results(given: object) -> Iterator[torch.Tensor]:
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, Gradients):
        yield from _results((given.q, given.k, given.v, *given.tensors.values()))
    elif isinstance(given, tuple):
        for one in given:
            yield from _results(one)


def _source(sources: TritonSources, wanted: frozenset[str] | None, types: Mapping[str, str]) -> str:
    """The file that a call runs kernels of."""

    def read(tensors: tuple[TensorDecl, ...]) -> list[str]:
        return [types[t.name] for t in tensors]

    if wanted is None:
        return sources.forward_source(read(sources.kernels.kernel.tensors))
    return sources.backward_source(wanted, read(sources.kernels.loops(wanted).tensors))


def _record(bucket: Bucket, outcome: Outcome[str], words: str) -> Record:
    trials = tuple(({"backend": name}, ratio) for name, ratio in outcome.trials.items())
    choice = {"backend": outcome.winner}
    return Record(asdict(bucket), choice, outcome.ratio, outcome.seconds, trials, words)
