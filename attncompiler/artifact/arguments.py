"""Turns a variant's tensors and parameters into the arguments of a package's ``attention``, and says what they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attncompiler.frontend import Trace
from attncompiler.runtime.prepared import wanted_by
from attncompiler.sampling import SIZE_OF


@dataclass(frozen=True, slots=True)
class Argument:
    """One keyword of ``attention``; ``default`` is Python text, None for an argument that must be given."""

    name: str
    annotation: str
    default: str | None
    text: str
    tensor: bool


def arguments_of(trace: Trace) -> list[Argument]:
    """The tensors, those that must be given first, then the parameters; both in the order of the class."""
    cls = type(trace.variant)
    prepare = getattr(trace.variant, "prepare", None)
    # What prepare names without a default; others it may make itself.
    required = {n for n, how in wanted_by(prepare) if how == "required"} if prepare else set()
    read = {t.name for t in trace.program.tensors}
    tensors = []
    for name, declared in cls._tensors.items():
        needed = name in required or (name in read and prepare is None)
        dtype = declared.dtype if isinstance(declared.dtype, torch.dtype) else None
        kind = str(dtype).removeprefix("torch.") if dtype else declared.kind
        shape = ", ".join(SIZE_OF.get(str(a), str(a)) for a in declared.axes)
        optional = "not read" if prepare is None else "may be left out where prepare gives it"
        text = f"{kind} tensor ``[{shape}]``{'' if needed else f'; {optional}'}."
        annotation = "torch.Tensor" if needed else "torch.Tensor | None"
        tensors.append(Argument(name, annotation, None if needed else "None", text, True))
    tensors.sort(key=lambda argument: argument.default is not None)
    params = []
    for name, kind in cls._parameters.items():
        if name == "scale":  # an argument of every call
            continue
        value = trace.params[name]
        default = repr(value) if abs(value) < float("inf") else f'float("{value!r}")'
        least = trace.limits.get(name)
        limit = f", at least {least[0]}" if least else ""
        text = f"a run-time {kind}{limit}; a new value builds nothing. Default {value!r}."
        params.append(Argument(name, kind, default, text, False))
    return tensors + params
