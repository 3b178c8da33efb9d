"""Runs each call on a GPU with the kernels of the backend that measurements found fastest for calls like it.

What the forward keeps for the backward is the same for all backends, so the two are chosen apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from attncompiler.runtime.backward_plan import Gradients
    from attncompiler.runtime.triton_engine import TritonEngine

# Calls with lengths that never return (decoding) must not fill the memory.
_MOST_CHOICES = 256


class Judge(Protocol):
    """What a choice asks which backend runs calls of a kind that it has not met."""

    def forward(self, choice: GpuChoice, call: tuple[Any, ...]) -> str:
        """The backend by name for ``choice.forward(*call)``."""

    def backward(self, choice: GpuChoice, call: tuple[Any, ...], named: Mapping[str, Any]) -> str:
        """The backend by name for ``choice.backward(*call, **named)``."""


class GpuChoice:
    """An ``Engine`` of several, by the names of their backends; the first runs what nothing was measured for."""

    def __init__(self, engines: Mapping[str, TritonEngine], judge: Judge) -> None:
        self.engines = dict(engines)
        self.judge = judge
        self.usual = next(iter(engines))
        self._forwards: dict[tuple[object, ...], str] = {}
        self._backwards: dict[tuple[object, ...], str] = {}

    def forget(self) -> None:
        """Choose anew at the next calls."""
        self._forwards.clear()
        self._backwards.clear()
        for engine in self.engines.values():
            engine.forget()

    def explain(self) -> list[str]:
        """Which backend runs the kinds of calls that were met so far, in lines of text."""
        return [
            f"   {kind} of q {list(key[0])} and k {list(key[1])}, {key[3]}: {name}."  # type: ignore[call-overload]
            for kind, chosen in (("Forward", self._forwards), ("Gradients", self._backwards))
            for key, name in chosen.items()
        ]

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        captured: Sequence[Tensor],
        q_start: int,
        scale: float,
        numbers: Sequence[float],
        stats: bool = False,
        train: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """See ``Launcher.forward``."""
        key = (q.shape, k.shape, v.shape, q.dtype, q.device, *(x.dtype for x in captured))
        name = self._forwards.get(key)
        call = q, k, v, captured, q_start, scale, numbers, stats, train
        if name is None:
            name = self.judge.forward(self, call)
            _keep(self._forwards, key, name)
        return self.engines[name].forward(*call)

    def backward(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        grad: Tensor,
        kept_grads: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        **named: Any,
    ) -> Gradients:
        """See ``Launcher.backward``."""
        q, k, v = inputs
        types = (x.dtype for x in tensors.values())
        key = (q.shape, k.shape, v.shape, q.dtype, q.device, named["wanted"], *types)
        name = self._backwards.get(key)
        call = inputs, grad, kept_grads, tensors
        if name is None:
            name = self.judge.backward(self, call, named)
            _keep(self._backwards, key, name)
        return self.engines[name].backward(*call, **named)


def _keep(chosen: dict[tuple[object, ...], str], key: tuple[object, ...], name: str) -> None:
    if len(chosen) >= _MOST_CHOICES:
        chosen.clear()
    chosen[key] = name
