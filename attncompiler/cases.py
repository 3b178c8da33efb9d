"""Turns a seed into the calls that break kernels: odd lengths, odd head dimensions, groups, strides, offsets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

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
    """``count`` cases; the first ones take every length, head dimension, group, layout and type in turn.

    Kernels are specialised to (dtype, D, Dv), so only about a dozen combinations of these appear: the first
    type with every head dimension, the others with two.
    """
    random_ = random.Random(seed)
    shapes = [(dtypes[0], d, d) for d in HEAD_DIMS] + [(dtypes[0], 64, 31), (dtypes[0], 16, 96)]
    shapes += [(dtype, d, dv) for dtype in dtypes[1:] for d, dv in ((64, 64), (31, 72))]
    # Types alternate, so that a short run sees all of them.
    shapes.sort(key=lambda shape: (shapes_before(shapes, shape), dtypes.index(shape[0])))
    cases = []
    for i in range(count):
        dtype, head_dim, value_dim = shapes[i % len(shapes)]
        groups = GROUPS[i % len(GROUPS)]
        kv_heads = random_.choice((1, 2)) if groups > 1 else random_.choice((1, 2, 3))
        queries, keys = _lengths(i, random_)
        cases.append(
            Case(
                B=0 if i % 16 == 13 else random_.choice((1, 2)),
                H=groups * kv_heads,
                G=kv_heads,
                M=queries,
                N=keys,
                D=head_dim,
                Dv=value_dim,
                q_start=random_.choice((0, 0, 1, 64, max(keys - queries, 0))),
                dtype=dtype,
                layout=LAYOUTS[i % len(LAYOUTS)],
                seed=seed + i,
            )
        )
    return cases


def shapes_before(shapes: Sequence[tuple[str, int, int]], shape: tuple[str, int, int]) -> int:
    """How many earlier shapes have the same element type."""
    return sum(other[0] == shape[0] for other in shapes[: shapes.index(shape)])


def _lengths(i: int, random_: random.Random) -> tuple[int, int]:
    # Walks over all lengths for both, each against a different one: longer queries, longer keys, both odd.
    queries = LENGTHS[i % len(LENGTHS)]
    keys = LENGTHS[(i + 1 + i // len(LENGTHS)) % len(LENGTHS)]
    return (queries, keys) if random_.random() < 0.5 else (keys, queries)
