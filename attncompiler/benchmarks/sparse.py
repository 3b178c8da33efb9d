"""Turns two sparse masks into lines that say how much of their sparsity a kernel turns into speed.

A sparse kernel is measured against our own dense causal kernel, in turns in one run. If time followed work exactly, it
would need ``visited / visited by causal`` of that kernel's time, where visited are the pairs in tiles of 64 x 64 that
are not empty; the share of ideal is that time over the measured one. Compiled FlexAttention runs beside it, with its
block mask made before.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from attncompiler.benchmarks.report import SparseLine
from attncompiler.benchmarks.suite import Causal, Document, Window
from attncompiler.comparison import Size, caller, inputs_for
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant
from attncompiler.peers import Refusal, peer
from attncompiler.runtime.operator import Operator
from attncompiler.timing import interleaved

TILE = (64, 64)


class Documents(Document):
    """Sixteen packed documents of one length."""

    documents = 16


MASKS: tuple[Variant, ...] = (Window(window=1024), Documents())


def measure(
    variant: Variant, size: Size, *, device: str, backend: str, flex: bool, rounds: int
) -> SparseLine:
    """One mask against the dense kernel and, where asked for, FlexAttention."""
    inputs = inputs_for(variant, size, device=device)
    sparse, dense = (compile_variant(each, backend=backend) for each in (variant, Causal()))
    assert isinstance(sparse, Operator)
    assert isinstance(dense, Operator)
    calls: dict[str, Callable[[], object]] = {
        "ours": caller(sparse, inputs),
        "dense": lambda: dense(inputs.q, inputs.k, inputs.v),
    }
    with torch.no_grad():
        if flex:
            other = peer("flex", variant, inputs)
            if not isinstance(other, Refusal):
                calls["flex"] = other
        timings = interleaved(calls, rounds=rounds, device=device)
    times = {name: timing.median for name, timing in timings.items()}
    tables = {name: x.cpu() for name, x in inputs.tensors.items()}
    planning = []
    for _ in range(rounds):
        begin = perf_counter()
        tiles = sparse.tile_map(size.length, TILE, heads=size.heads, **tables)
        planning.append(perf_counter() - begin)
    part = tiles.work / dense.tile_map(size.length, TILE).work
    return SparseLine(
        mask=type(variant).__name__.lower(),
        size=size,
        visited=part,
        ours=times["ours"],
        dense=times["dense"],
        ideal=times["dense"] * part / times["ours"],
        flex=times.get("flex"),
        planning=median(planning),
    )
