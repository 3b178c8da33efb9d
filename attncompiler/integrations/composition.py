"""Joins a user's variant with what a model asks for: a subclass whose slots do both, its values run-time arguments.

The model's part comes first: the score the variant sees is already soft-capped and biased as the model wants it, and
the pairs it may allow are those the model allows.
"""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor as TorchTensor

from attncompiler.compiler import Operator, compile_levels
from attncompiler.declarations import Tensor
from attncompiler.frontend import trace
from attncompiler.integrations.conditions import (
    Argument,
    Condition,
    Everything,
    Pair,
    arguments,
    described,
    formula,
    structure,
)
from attncompiler.integrations.errors import RegistrationError
from attncompiler.prelude.normalizers import sink_softmax
from attncompiler.prelude.scores import soft_cap
from attncompiler.variant import Variant

PREFIX = "model_"


@dataclass(frozen=True, slots=True)
class Request:
    """What one call of a model asks for beyond the variant's own formula.

    ``condition`` is the model's mask. ``key_offset`` is the position of the first key, not 0 where a cache has dropped
    the beginning. ``softcap`` limits scores; ``bias`` [B|1, H|1, M, N] is added to them; ``dense`` [B|1, H|1, M, N] is
    a mask given element by element, bool (True allows) or float (added; the lowest number of its dtype forbids);
    ``sinks`` [H] are logits that take weight and give no value.
    """

    condition: Condition = field(default_factory=Everything)
    key_offset: int = 0
    softcap: float | None = None
    bias: TorchTensor | None = None
    dense: TorchTensor | None = None
    sinks: TorchTensor | None = None

    @property
    def structure(self) -> tuple[object, ...]:
        """What of it decides the kernel; hashable."""
        return (
            structure(self.condition),
            self.key_offset != 0,
            self.softcap is not None,
            self.sinks is not None,
            None if self.bias is None else _axes(self.bias),
            None if self.dense is None else (_axes(self.dense), self.dense.is_floating_point()),
        )

    def described(self) -> str:
        """What is asked for, in words: the model's part in the head of a generated file."""
        words = [f"a mask: {described(self.condition)}"]
        words += ["a mask given element by element"] * (self.dense is not None)
        words += ["positions that begin before the first key"] * (self.key_offset != 0)
        words += ["a soft cap on the scores"] * (self.softcap is not None)
        words += ["a bias on the scores"] * (self.bias is not None)
        words += ["sinks beside the keys"] * (self.sinks is not None)
        return "; ".join(words)

    def declared(self) -> dict[str, Argument]:
        """The run-time arguments of this request by name, in one fixed order."""
        found = {f"{PREFIX}{i}": a for i, a in enumerate(arguments(self.condition))}
        if self.key_offset:
            found[f"{PREFIX}key_offset"] = Argument(self.key_offset)
        if self.softcap is not None:
            found[f"{PREFIX}softcap"] = Argument(float(self.softcap), None, "float")
        if self.sinks is not None:
            found[f"{PREFIX}sinks"] = Argument(self.sinks, ("h",), "float")
        if self.bias is not None:
            found[f"{PREFIX}bias"] = _pairwise(self.bias)
        if self.dense is not None:
            found[f"{PREFIX}dense"] = _pairwise(self.dense)
            if self.dense.is_floating_point():
                lowest = torch.finfo(self.dense.dtype).min
                found[f"{PREFIX}lowest"] = Argument(lowest, None, "float")
        return found

    def values(self, batch: int) -> dict[str, Any]:
        """The values of ``declared``; tensors of one batch row serve all ``batch`` rows."""
        return {name: _fitted(a, batch) for name, a in self.declared().items()}


def _axes(x: TorchTensor) -> tuple[str, ...]:
    """The axes of a pairwise tensor that are not merely broadcast."""
    return (*("b" * (x.shape[0] > 1)), *("h" * (x.shape[1] > 1)), "q", "k")


def _pairwise(x: TorchTensor) -> Argument:
    kind = "float" if x.is_floating_point() else "bool"
    index = tuple(0 if x.shape[axis] == 1 else slice(None) for axis in (0, 1))
    return Argument(x[index], _axes(x), kind)


def _fitted(argument: Argument, batch: int) -> Any:
    value, axes = argument.value, argument.axes
    if axes and axes[0] == "b" and value.shape[0] == 1 and batch != 1:
        return value.expand(batch, *value.shape[1:])
    return value


def compose(variant: Variant, request: Request) -> Variant:
    """An instance of a subclass of the variant's class that also does what ``request`` says.

    It depends on ``request.structure`` and the variant alone; ``request.values()`` go into each call.
    """
    base = type(variant)
    declared = request.declared()
    taken = [n for n in (*base._parameters, *base._tensors) if n.startswith(PREFIX)]
    if taken:
        raise RegistrationError(
            location=None,
            variant=base.__name__,
            name=taken[0],
            detail=f"names that start with {PREFIX!r} are those of the model's own arguments",
            fix=f"rename {taken[0]}",
        )
    namespace: dict[str, Any] = {
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "__annotations__": {},
    }
    for name, argument in declared.items():
        if argument.axes is None:
            namespace["__annotations__"][name] = argument.dtype
            namespace[name] = 0.0 if argument.dtype == "float" else 0
        else:
            axes = [f"{name}_{axis}" if axis == "length" else axis for axis in argument.axes]
            namespace[name] = Tensor(*axes, dtype=argument.dtype)
    namespace |= _slots(request)
    made = type(base.__name__, (base,), namespace)
    instance: Variant = object.__new__(made)
    instance.__dict__.update(variant.__dict__)
    return instance


def build(variant: Variant, request: Request, origin: str) -> Operator:
    """The operator of both; ``origin`` is the call that a generated file names as its source."""
    traced = trace(compose(variant, request))
    cls = type(variant)
    try:
        definition = textwrap.dedent(inspect.getsource(cls)).rstrip()
    except (OSError, TypeError):  # a class made at a prompt has no file
        definition = f"class {cls.__name__} (source not available)"
    definition += f"\n\nin a layer of a model that asks for {request.described()}\n"
    return Operator(compile_levels(replace(traced, definition=definition, origin=origin)))


def _slots(request: Request) -> dict[str, Any]:
    """The slots in which the model takes part; what it has nothing to say about stays inherited."""
    condition, moved = request.condition, request.key_offset != 0
    softcap, sinks = request.softcap is not None, request.sinks is not None
    bias = None if request.bias is None else _axes(request.bias)
    dense = None if request.dense is None else _axes(request.dense)
    additive = request.dense is not None and request.dense.is_floating_point()

    def place(self: Any, at: Any) -> Any:
        return Moved(at, getattr(self, f"{PREFIX}key_offset")) if moved else at

    def mask(self: Any, at: Any) -> Any:
        given = (getattr(self, f"{PREFIX}{i}") for i in range(len(arguments(condition))))
        there = place(self, at)
        allowed = formula(condition, Pair(at.b, at.h, there.q, there.k, at.k), given)
        if dense is not None:
            element = _element(self, "dense", dense, at)
            lowest = getattr(self, f"{PREFIX}lowest") if additive else None
            allowed = _and(allowed, element > lowest if additive else element)
        return _and(allowed, _inherited(self, "mask")(there))

    def score(self: Any, s: Any, at: Any) -> Any:
        if softcap:
            s = soft_cap(s, getattr(self, f"{PREFIX}softcap"))
        if bias is not None:
            s = s + _element(self, "bias", bias, at)
        if additive and dense is not None:
            s = s + _element(self, "dense", dense, at)
        return _inherited(self, "score")(s, place(self, at))

    def normalize(self: Any, s: Any, row: Any) -> Any:
        if sinks:
            return sink_softmax(s, row, getattr(self, f"{PREFIX}sinks")[row.h])
        return _inherited(self, "normalize")(s, place(self, row))

    def output(self: Any, o: Any, at: Any) -> Any:
        return _inherited(self, "output")(o, place(self, at))

    takes_part = {
        "mask": moved or dense is not None or not isinstance(condition, Everything),
        "score": moved or softcap or bias is not None or additive,
        "normalize": moved or sinks,
        "output": moved,
    }
    slots = {"mask": mask, "score": score, "normalize": normalize, "output": output}
    return {name: slot for name, slot in slots.items() if takes_part[name]}


def _inherited(view: Any, name: str) -> Any:
    """The user's slot, bound: whether it is written as a method or as a static one."""
    return getattr(super(type(view), view), name)


def _element(view: Any, name: str, axes: tuple[str, ...], at: Any) -> Any:
    """The element of a pairwise tensor at the pair; its rows and columns are those of this call."""
    symbols = {"b": at.b, "h": at.h, "q": at.q, "k": at.k}
    return getattr(view, f"{PREFIX}{name}")[tuple(symbols[axis] for axis in axes)]


def _and(x: Any, y: Any) -> Any:
    if x is True:
        return y
    return x if y is True else x & y


class Moved:
    """``at`` or ``row`` with positions that count from the start of the sequence, though the keys begin later."""

    def __init__(self, at: Any, offset: Any) -> None:
        self._at, self._offset = at, offset

    @property
    def q(self) -> Any:
        """The position of the query in the sequence."""
        return self._at.q + self._offset

    @property
    def k(self) -> Any:
        """The position of the key in the sequence."""
        return self._at.k + self._offset

    @property
    def N(self) -> Any:  # noqa: N802 - the name of the size
        """The number of keys of the sequence, with those before the first key at hand."""
        return self._at.N + self._offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._at, name)
