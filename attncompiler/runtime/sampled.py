"""Example inputs of a package: turns what its manifest says of each tensor into random torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from attncompiler.ir.declared import Kind
from attncompiler.sampling import sample_tensors


@dataclass(frozen=True, slots=True)
class DrawnTensor:
    """A declared tensor and the values that tests may give it; see ``sampling.Drawable``."""

    axes: tuple[str | int, ...]
    kind: Kind
    dtype: object
    low: float | None
    high: float | None
    extent: int

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> DrawnTensor:
        """What a manifest says; a dtype stands there by its name."""
        dtype = None if data["dtype"] is None else getattr(torch, data["dtype"])
        return cls(**{**data, "axes": tuple(data["axes"]), "dtype": dtype})


class Sampled:
    """What draws the tensors of a call; the ``sample`` of a variant overrides it and may call it."""

    tensors: Mapping[str, DrawnTensor]

    def sample(self, sizes: dict[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Random tensors within the declared ranges; ``sizes`` gives B, H, G, M, N, D, Dv and ``q_start``."""
        return sample_tensors(self.tensors, sizes, generator)
