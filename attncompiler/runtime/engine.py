"""What runs a call: one engine a type of device, and the engines of one variant as registered operators see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from attncompiler.runtime.signature import Described

if TYPE_CHECKING:
    from attncompiler.runtime.backward_plan import Gradients


class Engine(Protocol):
    """Runs the kernels of one variant on real tensors."""

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

    def backward(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        grad: Tensor,
        kept_grads: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        *,
        q_start: int,
        scale: float,
        params: Mapping[str, float],
        saved: Mapping[str, Tensor],
        value: Tensor,
        wants: tuple[bool, bool, bool],
        wanted: frozenset[str],
    ) -> Gradients:
        """See ``Launcher.backward``."""


class EngineSet(Protocol):
    """The engines of one variant."""

    @property
    def kernels(self) -> Described:
        """What all of them know of the variant."""

    @property
    def backend(self) -> str:
        """The backend the user asked for: "auto", or a name."""

    @property
    def deterministic(self) -> bool:
        """Whether equal calls must give equal bits."""

    @property
    def tune(self) -> float | None:
        """Seconds that a search for the best schedule may take when shapes are first met; None for no search."""

    def of(self, q: Tensor) -> Engine:
        """The engine of a call; DeviceError where no kernels run on the device of q."""
