"""Turns two sparse masks into lines that say how much of their sparsity a kernel turns into speed.

A sparse kernel is measured against our own dense causal kernel, in turns in one run. If time followed work exactly, it
would need ``visited / visited by causal`` of that kernel's time, where visited are the pairs in tiles of 64 x 64 that
are not empty; the share of ideal is that time over the measured one. Compiled FlexAttention runs beside it, with its
block mask made before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor as Elements

from attncompiler.comparison import Size, inputs_for
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Tensor, Variant, causal, document, sliding_window
from attncompiler.peers import Refusal, peer
from attncompiler.timing import interleaved

LENGTH, TILE = 16384, (64, 64)


class Causal(Variant):
    """The dense kernel."""

    def mask(self, at: Any) -> Any:
        return causal(at)


class Window(Variant):
    """The last 1024 keys."""

    window: int = 1024

    def mask(self, at: Any) -> Any:
        return causal(at) & sliding_window(at, self.window)


class Documents(Variant):
    """Sixteen packed documents of one length."""

    ids = Tensor("k", dtype="int")

    def mask(self, at: Any) -> Any:
        return causal(at) & document(at, self.ids)

    def sample(self, sizes: dict[str, int], generator: torch.Generator) -> dict[str, Elements]:
        return {"ids": torch.arange(sizes["N"]) * 16 // sizes["N"]}


@dataclass(frozen=True, slots=True)
class SparseResult:
    """One line; times in seconds, ``flex`` NaN where it was not measured."""

    mask: str
    size: Size
    visited: float
    ours: float
    dense: float
    ideal: float
    flex: float
    planning: float


HEADER = (
    "| mask | dtype | S | D | visited | ours, ms | our dense causal, ms | share of ideal | flex | planning, ms |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def run(
    head_dims: Sequence[int], *, flex: bool, rounds: int, length: int = LENGTH
) -> Iterator[SparseResult]:
    """Measure both masks, a line at a time."""
    for dtype in ("float32", "bfloat16"):
        for head_dim in head_dims:
            size = Size(length, head_dim, dtype, heads=2)
            for variant in (Window(), Documents()):
                yield measure(variant, size, flex=flex, rounds=rounds)


def measure(variant: Variant, size: Size, *, flex: bool, rounds: int) -> SparseResult:
    """One mask against the dense kernel and, where asked for, FlexAttention."""
    inputs = inputs_for(variant, size)
    sparse, dense = compile_variant(variant), compile_variant(Causal)
    tokens = inputs.q, inputs.k, inputs.v
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: sparse(*tokens, **inputs.tensors),
        "dense": lambda: dense(*tokens),
    }
    if flex:
        other = peer("flex", variant, inputs)
        if not isinstance(other, Refusal):
            calls["flex"] = other
    with torch.no_grad():
        times = {name: t.median for name, t in interleaved(calls, rounds=rounds).items()}
    planning = []
    for _ in range(rounds):
        begin = perf_counter()
        tiles = sparse.tile_map(size.length, TILE, heads=size.heads, **inputs.tensors)
        planning.append(perf_counter() - begin)
    part = tiles.work / dense.tile_map(size.length, TILE).work
    return SparseResult(
        mask=type(variant).__name__,
        size=size,
        visited=part,
        ours=times["ours"],
        dense=times["dense"],
        ideal=times["dense"] * part / times["ours"],
        flex=times.get("flex", float("nan")),
        planning=median(planning),
    )


def markdown(result: SparseResult) -> str:
    """One line of the README's table."""
    size, faster = result.size, result.flex / result.ours
    cells = [
        result.mask,
        size.dtype,
        size.length,
        size.head_dim,
        f"{result.visited:.3f}",
        f"{1e3 * result.ours:.2f}",
        f"{1e3 * result.dense:.2f}",
        f"{result.ideal:.2f}",
        f"{faster:.2f}x" if faster == faster else "",
        f"{1e3 * result.planning:.2f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"
