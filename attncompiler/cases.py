"""Turns a seed into the calls that break kernels: odd lengths, odd head dimensions, groups, strides, offsets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import cycle, zip_longest
from typing import Literal, TypeVar, get_args

T = TypeVar("T")

Layout = Literal["plain", "swapped", "padded", "broadcast"]

LENGTHS = (1, 5, 63, 127, 129, 257)
HEAD_DIMS = (64, 16, 31, 128, 72, 96, 192, 256)
GROUPS = (1, 3, 8)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True, slots=True)
class Case:
    """One call: sizes, element type, memory layout, and the seed of its numbers.

    ``layout``: ``plain`` is contiguous; ``swapped`` holds [B, M, H, D] in memory; ``padded`` has longer rows than
    D; ``broadcast`` gives every batch and head the same keys and values (stride 0).
    """

    B: int = 2
    H: int = 3
    G: int = 1
    M: int = 63
    N: int = 129
    D: int = 64
    Dv: int = 64
    q_start: int = 0
    dtype: str = "float32"
    layout: Layout = "plain"
    seed: int = 0

    def __str__(self) -> str:
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))

    @classmethod
    def parse(cls, text: str) -> Case:
        """The inverse of ``str``; raises ValueError naming what it cannot read."""
        values: dict[str, object] = {}
        kinds = {f.name: int if f.type == "int" else str for f in fields(cls)}
        for item in text.split():
            name, _, value = item.partition("=")
            if name not in kinds or not value:
                raise ValueError(f"cannot read {item!r}; known are {', '.join(kinds)}")
            values[name] = kinds[name](value)
        return replace(cls(), **values)  # type: ignore[arg-type]

    @property
    def sizes(self) -> dict[str, int]:
        """The extents by their names in a variant."""
        return {name: getattr(self, name) for name in ("B", "H", "G", "M", "N", "D", "Dv")}

    def smaller(self) -> Iterator[Case]:
        """Simpler cases with the same element type and head dimensions, so that no new kernel is built."""
        if self.layout != "plain":
            yield replace(self, layout="plain")
        if self.q_start:
            yield replace(self, q_start=0)
        if self.B > 1:
            yield replace(self, B=1)
        if self.G > 1:
            yield replace(self, G=1, H=self.H // self.G)
        if self.H > self.G:
            yield replace(self, H=self.G)
        for name in ("M", "N"):
            length = getattr(self, name)
            for shorter in sorted({1, length // 2, length * 3 // 4, length - 1}):
                if 0 < shorter < length:
                    yield replace(self, **{name: shorter})


def draw_cases(seed: int, count: int, dtypes: Sequence[str]) -> list[Case]:
    """``count`` cases, the same for the same seed; 16 of them take each value of each property at least once.

    Kernels are specialised to (dtype, D, Dv), so only 16 combinations of these appear: the first type with every
    head dimension, each other type with two.
    """
    random_ = random.Random(seed)
    first, *others = dtypes
    mine = [(first, d, d) for d in HEAD_DIMS] + [(first, 64, 31), (first, 16, 96)]
    theirs = [(dtype, d, dv) for d, dv in ((64, 64), (31, 72)) for dtype in others]
    # Types alternate, so that a short run sees all of them.
    shapes = cycle([s for pair in zip_longest(mine, theirs) for s in pair if s is not None])
    lengths = list(zip(LENGTHS, LENGTHS[1:] + LENGTHS[:1], strict=True))
    pairs = _deck(random_, lengths + [(n, m) for m, n in lengths])
    groups, layouts = _deck(random_, GROUPS), _deck(random_, LAYOUTS)
    batches, kv_heads = _deck(random_, (1, 2, 1, 2, 0)), _deck(random_, (1, 2, 3))
    cases = []
    for i in range(count):
        queries, keys = next(pairs)
        group, kv_head = next(groups), next(kv_heads)
        kv_head = min(kv_head, 2) if group > 1 else kv_head
        dtype, head_dim, value_dim = next(shapes)
        cases.append(
            Case(
                B=next(batches),
                H=group * kv_head,
                G=kv_head,
                M=queries,
                N=keys,
                D=head_dim,
                Dv=value_dim,
                q_start=random_.choice((0, 0, 1, 64, max(keys - queries, 0))),
                dtype=dtype,
                layout=next(layouts),
                seed=seed + i,
            )
        )
    return cases


def _deck(random_: random.Random, items: Sequence[T]) -> Iterator[T]:
    """The items shuffled, again and again: each comes up once before any comes up twice."""
    while True:
        yield from random_.sample(items, len(items))
