"""Chooses and tunes how the GPU kernels of an operator are cut: by records of earlier searches, or by a search.

The candidates are the configurations that fit the device, in the order in which they would be tried without timing.
Rows and columns of a backward are searched one after the other, each with the other's best.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence, Set
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attncompiler.backends.cpp_context import Specialization
from attncompiler.backends.tile_config import Kind
from attncompiler.runtime.cache import content_key
from attncompiler.runtime.call_checks import INPUT_TYPES
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.listed_tilings import (
    backward_situation,
    device_name,
    forward_situation,
)
from attncompiler.runtime.situation import Bucket, Situation
from attncompiler.runtime.tilings import Tilings
from attncompiler.runtime.triton_engine import TritonEngine
from attncompiler.runtime.triton_launch import Tiling
from attncompiler.runtime.triton_modules import Dims
from attncompiler.tuning.records import Record, folder_of, read, write
from attncompiler.tuning.tuned import Tuned
from attncompiler.tuning.tuner import Limits, Outcome, Search, Step


@dataclass(slots=True)
class GpuTuner:
    """Decides between the tilings of a call when its shapes are first met.

    Without ``limits`` it only looks for records; ``again`` searches although there is one. ``hear`` is told of each
    step of a search, ``found`` collects results.
    """

    kernels: Kernels
    limits: Limits | None = None
    again: bool = False
    hear: Callable[[Kind, Step[Tiling]], None] = lambda kind, step: None
    found: list[Tuned] = field(default_factory=list)
    _keys: dict[tuple[object, ...], Path] = field(default_factory=dict)

    def forward(
        self, engine: TritonEngine, module: ModuleType, options: Tilings, call: tuple[Any, ...]
    ) -> None:
        """Put the best tiling first for a call of ``engine.forward``."""
        q = call[0]
        spec, situation = forward_call(self.kernels, call)

        def prepare(tiling: Tiling) -> Callable[[], object]:
            return partial(_fixed(engine, {"forward": tiling}).forward, *call)

        self._decide(engine, "forward", module, spec, situation, options, prepare, q)

    def backward(
        self,
        engine: TritonEngine,
        module: ModuleType,
        options: Sequence[tuple[Kind, Tilings]],
        call: tuple[Any, ...],
        named: Mapping[str, Any],
    ) -> None:
        """The same for the kernels of a call of ``engine.backward``."""
        (q, _, _), *_ = call
        spec, situation = backward_call(self.kernels, call, named)
        for kind, mine in options:

            def prepare(tiling: Tiling, kind: Kind = kind) -> Callable[[], object]:
                chosen = {k: t.current for k, t in options} | {kind: tiling}
                return partial(_fixed(engine, chosen).backward, *call, **named)

            self._decide(engine, kind, module, spec, situation, mine, prepare, q)

    # ----------------------------------------------------------------------------------------------------------

    def _decide(
        self,
        engine: TritonEngine,
        kind: Kind,
        module: ModuleType,
        spec: Specialization,
        situation: Situation,
        options: Tilings,
        prepare: Callable[[Tiling], Callable[[], object]],
        q: Tensor,
    ) -> None:
        sizes = situation.sizes
        if min(sizes.batch, sizes.heads, sizes.queries, sizes.keys) == 0:
            return
        folder = self._folder(engine, kind, module, spec, q.device)
        if self.limits is None and not folder.is_dir():
            return
        bucket = situation.bucket(self.kernels.density("float32", situation))
        record = read(folder, str(bucket))
        known = record is not None and record.complete and not self.again
        if not known and self.limits is not None:
            trials = () if record is None or self.again else record.trials
            record = self._search(kind, folder, bucket, options, prepare, q, dict_of(trials))
        if record is None or not record.complete:
            return
        winner = Tiling(**record.choice)
        options.prefer(winner)
        count = len(record.trials)
        found = Tuned(kind, bucket, spec, winner, record.ratio, record.seconds, count, known)
        self.found.append(found)

    def _search(
        self,
        kind: Kind,
        folder: Path,
        bucket: Bucket,
        options: Tilings,
        prepare: Callable[[Tiling], Callable[[], object]],
        q: Tensor,
        known: Mapping[Tiling, float],
    ) -> Record:
        assert self.limits is not None
        device = "cuda" if q.is_cuda else "cpu"
        refused = RuntimeError, out_of_resources()
        search = Search(list(options.options), prepare, refused=refused, known=known, device=device)
        words = f"{kind} of {bucket} on {device_name(q.device)}"

        def log(step: Step[Tiling]) -> None:
            write(folder, str(bucket), _record(bucket, search.trials, words, None))
            self.hear(kind, step)

        outcome = search.run(self.limits, log)
        record = _record(bucket, outcome.trials, words, outcome)
        write(folder, str(bucket), record)
        return record

    def _folder(
        self,
        engine: TritonEngine,
        kind: Kind,
        module: ModuleType,
        spec: Specialization,
        device: torch.device,
    ) -> Path:
        tf32 = torch.backends.cuda.matmul.allow_tf32
        key = (kind, module, spec, device, engine.deterministic, tf32)
        if key not in self._keys:
            source = Path(str(module.__file__)).read_text(encoding="utf-8")
            self._keys[key] = folder_for(
                self.kernels.name,
                (engine.backend, kind, source),
                spec,
                device,
                deterministic=engine.deterministic,
                tf32=tf32,
            )
        return self._keys[key]


def folder_for(
    name: str,
    kernel: tuple[str, Kind, str],
    spec: Specialization,
    device: torch.device,
    *,
    deterministic: bool,
    tf32: bool,
) -> Path:
    """Where records of a kernel (backend, kind, source) are: the key tells apart all that changes its machine code."""
    backend, kind, source = kernel
    told = repr((kind, spec, backend, deterministic, tf32))
    key = content_key(code_of(source), told, device_name(device), versions())
    return folder_of(name, key)


def dict_of(trials: Sequence[tuple[dict[str, Any], float]]) -> dict[Tiling, float]:
    """The trials of a record by their tiling."""
    return {Tiling(**fields): ratio for fields, ratio in trials}


def _fixed(engine: TritonEngine, tilings: Mapping[Kind, Tiling]) -> TritonEngine:
    """The same engine with one tiling for each kernel."""
    made = copy(engine)
    made.tuner, made.fixed = None, dict(tilings)
    made._sites, made._gradient_sites = {}, {}
    return made


def forward_call(kernels: Kernels, call: tuple[Any, ...]) -> tuple[Specialization, Situation]:
    """What records of ``engine.forward(*call)`` go by."""
    situation = forward_situation(kernels.signature, call)
    read = {t.name for t in kernels.kernel.tensors}
    return _specialization(call[0], call[2], situation.tensors, read), situation


def backward_call(
    kernels: Kernels, call: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Specialization, Situation]:
    """What records of ``engine.backward(*call, **named)`` go by."""
    situation = backward_situation(call, named)
    (q, _, v), *_ = call
    read = {t.name for t in kernels.loops(named["wanted"]).tensors}
    return _specialization(q, v, situation.tensors, read), situation


def _specialization(
    q: Tensor, v: Tensor, tensors: Mapping[str, Tensor], read: Set[str]
) -> Specialization:
    types = {n: str(x.dtype).removeprefix("torch.") for n, x in tensors.items() if n in read}
    return specialization((INPUT_TYPES[q.dtype], q.shape[3], v.shape[3]), types)


def specialization(dims: Dims, types: Mapping[str, str]) -> Specialization:
    """What records go by, of the types of the captured tensors that a kernel reads."""
    return Specialization(*dims, tuple(types[name] for name in sorted(types)))


def code_of(source: str) -> str:
    """A module's code without what its docstring quotes."""
    tree = ast.parse(source)
    return ast.dump(ast.Module(tree.body[1:] if ast.get_docstring(tree) else tree.body, []))


def versions() -> str:
    """Of whatever turns a module into machine code."""
    found = [torch.__version__, str(torch.version.cuda), str(torch.version.hip)]
    for name in ("triton", "tilelang"):
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("none")
    return " ".join(found)


def out_of_resources() -> type[Exception]:
    """What Triton raises for tiles that a device has no room for."""
    from triton.runtime.errors import OutOfResources

    found: type[Exception] = OutOfResources
    return found


def _record(
    bucket: Bucket,
    trials: Mapping[Tiling, float],
    words: str,
    outcome: Outcome[Tiling] | None,
) -> Record:
    listed = tuple((asdict(t), ratio) for t, ratio in trials.items())
    if outcome is None:
        return Record(asdict(bucket), {}, 1.0, 0.0, listed, words)
    choice = asdict(outcome.winner)
    return Record(asdict(bucket), choice, outcome.ratio, outcome.seconds, listed, words)
