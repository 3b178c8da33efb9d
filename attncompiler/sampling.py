"""Draws example inputs for declared tensors: turns declarations and sizes into random torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from attncompiler.ir.declared import Kind

if TYPE_CHECKING:
    import torch

SIZE_OF = {"b": "B", "h": "H", "g": "G", "q": "M", "k": "N", "d": "Dv"}


class Drawable(Protocol):
    """What a declaration says of the values of a tensor; see ``declarations.Tensor``."""

    @property
    def axes(self) -> tuple[str | int, ...]:
        """The name or the extent of each axis."""

    @property
    def kind(self) -> Kind:
        """``"float"``, ``"int"`` or ``"bool"``."""

    @property
    def dtype(self) -> object:
        """The kind, or a torch dtype."""

    @property
    def low(self) -> float | None:
        """The smallest value."""

    @property
    def high(self) -> float | None:
        """The largest value; ints stay below it."""

    @property
    def extent(self) -> int:
        """The extent of free axes."""


def tensor_shape(tensor: Drawable, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a declared tensor; ``sizes`` gives B, H, G, M, N, Dv and may give free axes by name."""
    return tuple(
        axis if isinstance(axis, int) else sizes.get(SIZE_OF.get(axis, axis), tensor.extent)
        for axis in tensor.axes
    )


def sample_tensors(
    tensors: Mapping[str, Drawable], sizes: Mapping[str, int], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Random values within each declaration's ``low`` and ``high``.

    Floats are float32: uniform when bounded on both sides, else normal and clamped to the bound. Ints are int64 in
    [low, high), by default [0, 8). A torch dtype in the declaration is kept.
    """
    return {
        name: _draw(tensor, tensor_shape(tensor, sizes), generator)
        for name, tensor in tensors.items()
    }


def _draw(tensor: Drawable, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    import torch

    given = tensor.dtype if isinstance(tensor.dtype, torch.dtype) else None
    match tensor.kind:
        case "bool":
            return torch.rand(shape, generator=generator) < 0.5
        case "int":
            low = 0 if tensor.low is None else int(tensor.low)
            high = low + 8 if tensor.high is None else int(tensor.high)
            return torch.randint(low, high, shape, generator=generator).to(given or torch.int64)
        case "float":
            if tensor.low is not None and tensor.high is not None:
                values = torch.rand(shape, generator=generator)
                values = tensor.low + (tensor.high - tensor.low) * values
            else:
                values = torch.randn(shape, generator=generator)
                if tensor.low is not None or tensor.high is not None:
                    values = values.clamp(tensor.low, tensor.high)
            return values.to(given or torch.float32)
