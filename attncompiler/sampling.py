"""Draws example inputs for declared tensors: turns declarations and sizes into random torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attncompiler.declarations import Tensor

if TYPE_CHECKING:
    import torch

_SIZE_OF = {"b": "B", "h": "H", "g": "G", "q": "M", "k": "N", "d": "Dv"}


def tensor_shape(tensor: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a declared tensor; ``sizes`` gives B, H, G, M, N, Dv and may give free axes by name."""
    return tuple(
        axis if isinstance(axis, int) else sizes.get(_SIZE_OF.get(axis, axis), tensor.extent)
        for axis in tensor.axes
    )


def sample_tensors(
    tensors: Mapping[str, Tensor], sizes: Mapping[str, int], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Random values within each declaration's ``low`` and ``high``.

    Floats are float32: uniform when bounded on both sides, else normal and clamped to the bound. Ints are int64 in
    [low, high), by default [0, 8). A torch dtype in the declaration is kept.
    """
    return {
        name: _draw(tensor, tensor_shape(tensor, sizes), generator)
        for name, tensor in tensors.items()
    }


def _draw(tensor: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
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
