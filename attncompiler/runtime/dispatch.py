"""Runs a checked call: straight to the kernel, or through torch where something records, traces or transforms it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attncompiler.runtime.call_checks import (
    check_inputs,
    check_storage,
    check_tensors,
    check_transforms,
    sizes_of,
    within_positions,
)
from attncompiler.runtime.engine import EngineSet
from attncompiler.runtime.launch import is_plain
from attncompiler.runtime.registration import register


class Dispatch:
    """One variant's kernels as a function of tensors; ``registered`` are its operators of torch."""

    def __init__(self, engines: EngineSet) -> None:
        kernels = engines.kernels
        self.name = kernels.name
        self.registered = register(engines)
        self._engines = engines
        self._tensors = kernels.signature.tensors
        self._reads = tuple(t.name for t in self._tensors)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        captured: Sequence[Tensor | None],
        q_start: int,
        scale: float | None,
        numbers: Sequence[float],
        stats: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The output ``[B, H, M, Dv]`` and with ``stats`` the kept statistics ``[n, B, H, M]``.

        ``captured`` are the tensors that the kernel reads, in order, None where the call gave none. A ``scale`` of
        None is 1/sqrt(D). Raises what ``check_inputs``, ``check_tensors`` and ``check_transforms`` raise.
        """
        if not torch.compiler.is_compiling() and is_plain((q, k, v, *captured)):
            out, kept, _, _ = self._engines.of(q).forward(
                q,
                k,
                v,
                captured,  # type: ignore[arg-type]
                q_start,
                _scale(scale, q),
                numbers,
                stats,
            )
            return out, kept
        # Autograd, tracers and transforms see one operator.
        tensors = {"q": q, "k": k, "v": v} | dict(zip(self._reads, captured, strict=True))
        if not torch.compiler.is_compiling():
            # The op's own checks follow, for a trace on symbolic sizes; torch would not let these come so far.
            for name, x in tensors.items():
                check_transforms(name, x)
                if x is not None or name in "qkv":
                    check_storage(name, x, None if name == "q" else q.device)
            if any(x is None for x in captured) or not within_positions(q_start):
                check_inputs(q, k, v, q_start)
                check_tensors(self.name, self._tensors, captured, sizes_of(q, v), q.device)
        train = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in tensors.values()
        )
        out, kept, _, _ = self.registered.forward(
            q, k, v, *captured, q_start, _scale(scale, q), *numbers, stats, train
        )
        return out, kept


def _scale(given: float | None, q: Tensor) -> float:
    if given is not None:
        return float(given)
    # Inputs without such an axis are refused where shapes are checked.
    return 1 / math.sqrt(q.shape[-1]) if q.dim() and q.shape[-1] else 1.0


def autocast(x: Tensor) -> Tensor:
    """As ``scaled_dot_product_attention``: float64 stays, other floating tensors take autocast's type."""
    if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x
