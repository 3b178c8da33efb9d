"""Judges calls on a CUDA device: kernels against the oracle in float64 on the same device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import attncompiler
import attncompiler.oracle
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.dsl import Variant

UNITS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


class CudaCall:
    """One call's tensors on a device, of which the floating ones are leaves."""

    def __init__(
        self, variant: Variant, case: Case, device: torch.device, backend: str = "triton"
    ) -> None:
        drawn = Checker(variant, backend=backend)
        self.case, self.variant, self.operator = drawn.fitted(case), variant, drawn.operator
        q, k, v, tensors = drawn.inputs(self.case)
        self.given: dict[str, Tensor] = {
            name: x.to(device).detach().requires_grad_(x.is_floating_point())
            for name, x in {"q": q, "k": k, "v": v, **tensors}.items()
        }

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.given.items() if x.requires_grad}

    def results(self, run: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """The output and all gradients of the sum of its elements, each with a weight of its own."""
        out = run(**given)
        wave = torch.arange(out.numel(), device=out.device).cos().reshape(out.shape)
        floats = {n: x for n, x in given.items() if x.requires_grad}
        found = torch.autograd.grad(
            (out * wave.to(out.dtype)).sum(), list(floats.values()), allow_unused=True
        )
        named = zip(floats.items(), found, strict=True)
        grads = {f"grad.{n}": torch.zeros_like(x) if g is None else g for (n, x), g in named}
        return {"out": out.detach(), **grads}

    def mine(self) -> dict[str, Tensor]:
        return self.results(
            lambda **given: self.operator(**given, q_start=self.case.q_start), self.given
        )

    def oracle(self, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The formula in one type; None for that of the call."""

        def run(q: Tensor, k: Tensor, v: Tensor, **tensors: Tensor) -> Tensor:
            return attncompiler.oracle.attention(
                self.variant, q, k, v, q_start=self.case.q_start, tensors=tensors, dtype=dtype
            ).out

        given = {
            n: (x.to(dtype or x.dtype) if x.is_floating_point() else x)
            .detach()
            .requires_grad_(x.requires_grad)
            for n, x in self.given.items()
        }
        return self.results(run, given)

    def wrong(self) -> str:
        """Results that are off by more than twice the error of plain PyTorch and a few units; empty when none is."""
        exact, plain, found = self.oracle(torch.float64), self.oracle(None), self.mine()
        largest = max(x.abs().nan_to_num(0, 0, 0).max().item() for x in exact.values() if x.numel())
        lines = []
        for name, right in exact.items():
            if not right.numel():
                continue
            good = right.isfinite() & plain[name].isfinite()
            mine, usual = ((x.double() - right)[good].abs() for x in (found[name], plain[name]))
            if not good.any():
                continue
            unit = UNITS[getattr(torch, self.case.dtype)]
            limit = 2 * usual.max().item() + 8 * unit * largest
            if not mine.max().item() <= limit:
                lines.append(f"{name}: error {mine.max().item():.2e}, limit {limit:.2e}")
        return "\n".join(lines)


def packed(
    variant: type[Variant], device: torch.device, backend: str, length: int = 256
) -> tuple[Any, list[Tensor]]:
    """An operator and q, k, v for it; TileLang multiplies float32 as tf32 only, and is given 16 bits."""
    op = attncompiler.compile(variant, backend=backend)
    dtype = torch.bfloat16 if backend == "tilelang" else torch.float32
    return op, [torch.randn(2, 4, length, 64, device=device, dtype=dtype) for _ in range(3)]
