"""Runs forward and backward kernels of a variant without the operator, and the oracle's gradients to compare with."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attncompiler import oracle
from attncompiler.backends.cpp import Specialization, render, render_backward
from attncompiler.backends.cpp_backward_printer import value_source
from attncompiler.compiler import compile_levels
from attncompiler.frontend import trace
from attncompiler.ir.passes.differentiate import differentiate
from attncompiler.ir.passes.lower_gradient import lower_gradient
from attncompiler.preparation import run_prepare
from attncompiler.runtime.backward_plan import run_backward, signature_of
from attncompiler.runtime.cache import content_key, entry
from attncompiler.runtime.library import BackwardLibrary, Library, Signature
from attncompiler.runtime.toolchain import find_toolchain
from attncompiler.variant import Variant


@dataclass(frozen=True)
class Results:
    """Everything a training step reads: out, kept statistics, gradients of q, k, v and of tensors, by name."""

    out: Tensor
    stats: dict[str, Tensor]
    grads: dict[str, Tensor]


def loss_grads(
    shape: tuple[int, ...], dtype: torch.dtype, kept: tuple[str, ...]
) -> dict[str, Tensor]:
    """Random gradients of the output (called "out") and of every kept statistic."""
    made = {"out": torch.randn(shape).to(dtype)}
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return made | {name: torch.randn(shape[:3]).to(real) for name in kept}


def build(source: str, name: str) -> Path:
    """The library of a printed kernel, from the cache when it holds it."""
    toolchain = find_toolchain()

    def fill(folder: Path) -> None:
        (folder / "kernel.cpp").write_text(source)
        toolchain.build(name, folder / "kernel.cpp", folder / "kernel.so")

    return entry(name, content_key(source, toolchain.key), fill)[0] / "kernel.so"


class Trainable:
    """A variant's kernels: ``forward`` keeps what ``backward`` needs."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.levels = compile_levels(trace(variant))
        self.gradient = differentiate(self.levels.plan)
        self.backward = functools.cache(self._lowered)
        self.kept = tuple(name for name, _ in self.levels.kernel.finish.kept)

    def _lowered(self, wanted: frozenset[str]):  # type: ignore[no-untyped-def]
        return lower_gradient(self.gradient, wanted)

    def spec(
        self, q: Tensor, v: Tensor, names: list[str], tensors: Mapping[str, Tensor]
    ) -> Specialization:
        """The specialization for these inputs of a kernel that reads the named tensors."""
        types = tuple(str(tensors[n].dtype).removeprefix("torch.") for n in names)
        return Specialization(str(q.dtype).removeprefix("torch."), q.shape[-1], v.shape[-1], types)

    def source(self, spec: Specialization, wanted: frozenset[str]) -> str:
        """The backward's C++ text."""
        return render_backward(self.backward(wanted), spec, "backward", "class Variant: ...", "-")

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        given: Mapping[str, Tensor],
        *,
        tensors: Mapping[str, Tensor] | None = None,
        q_start: int = 0,
        wanted: frozenset[str] | None = None,
        wants: tuple[bool, bool, bool] = (True, True, True),
        repeat: int = 1,
    ) -> Results:
        """Forward and backward for the gradients of the output and of kept statistics in ``given``."""
        tensors = dict(tensors or {})
        trace_ = self.levels.trace
        q, k, v, tensors = run_prepare(
            self.variant, q, k, v, tensors, params=trace_.params, q_start=q_start
        )
        if wanted is None:
            wanted = frozenset(n for n, t in tensors.items() if t.is_floating_point())
        kernel, backward = self.levels.kernel, self.backward(wanted)
        real = torch.float64 if q.dtype == torch.float64 else torch.float32
        shape = (*q.shape[:3], v.shape[3])
        params = dict(trace_.params) | {"q_start": q_start}
        scale = trace_.scale if trace_.scale is not None else 1 / math.sqrt(q.shape[-1])
        scale *= kernel.plan.program.dot_factor

        names = [t.name for t in kernel.tensors]
        spec = self.spec(q, v, names, tensors)
        signature = Signature(
            tuple(p.kind for p in kernel.params),
            tuple(len(t.axes) for t in kernel.tensors),
            len(self.kept),
            len(kernel.plan.stats),
        )
        forward = Library(build(render(kernel, spec, "f", "-", "-"), "forward"), signature)
        out = torch.full(shape, math.nan, dtype=q.dtype)
        value = torch.full(shape, math.nan, dtype=real)
        kept = {n: torch.full(shape[:3], math.nan, dtype=real) for n in self.kept}
        saved = {s.name: torch.full(shape[:3], math.nan, dtype=real) for s in kernel.plan.stats}
        captured = [tensors[n] for n in names]
        forward(
            q,
            k,
            v,
            out,
            layout=forward.layout(q, k, v, out, captured),
            q_start=q_start,
            scale=scale,
            params=[params[p.name] for p in kernel.params],
            tensors=captured,
            kept=list(kept.values()),
            saved=list(saved.values()),
            value=value,
        )
        spec = self.spec(q, v, [t.name for t in backward.tensors], tensors)
        library = BackwardLibrary(
            build(self.source(spec, wanted), "backward"), signature_of(backward)
        )
        for _ in range(repeat):
            found = run_backward(
                backward,
                library,
                q,
                k,
                v,
                given["out"],
                value=out if value_source(backward) == "out" else value,
                saved=saved,
                kept_grads={n: given.get(n) for n in self.kept},
                tensors=tensors,
                params=params,
                q_start=q_start,
                scale=scale,
                wants=wants,
            )
        grads = {"q": found.q, "k": found.k, "v": found.v, **found.tensors}
        return Results(out, kept, {n: g for n, g in grads.items() if g is not None})


def wanted_results(
    variant: Variant,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    given: Mapping[str, Tensor],
    *,
    tensors: Mapping[str, Tensor] | None = None,
    q_start: int = 0,
    dtype: torch.dtype | None = torch.float64,
) -> Results:
    """The same by autograd of the oracle; ``dtype`` None computes in the dtype of q, as dense PyTorch does."""
    leaves = {"q": q, "k": k, "v": v} | dict(tensors or {})
    real = q.dtype if dtype is None else dtype
    leaves = {
        n: t.detach().to(real).requires_grad_(True) if t.is_floating_point() else t
        for n, t in leaves.items()
    }
    others = {n: t for n, t in leaves.items() if n not in ("q", "k", "v")}
    result = oracle.attention(
        variant, leaves["q"], leaves["k"], leaves["v"], tensors=others, q_start=q_start, dtype=dtype
    )
    terms = [(result.out, given["out"].to(real))]
    terms += [(result.stats[n], g.to(real)) for n, g in given.items() if n != "out"]
    # A statistic of a row without keys may be infinite: it passes nothing on, and infinity times 0 is no number.
    loss = sum((torch.where(x.isfinite(), x, 0.0) * g).sum() for x, g in terms)
    names = [n for n, t in leaves.items() if t.requires_grad]
    if not loss.requires_grad:
        return Results(result.out, result.stats, {n: torch.zeros_like(leaves[n]) for n in names})
    found = torch.autograd.grad(loss, [leaves[n] for n in names], allow_unused=True)
    grads = {
        n: torch.zeros_like(leaves[n]) if g is None else g
        for n, g in zip(names, found, strict=True)
    }
    return Results(result.out.detach(), result.stats, grads)
