"""What a schedule is chosen by, besides the kernel: sizes, threads and mask of a call, in classes of a factor 2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attncompiler.runtime.tile_tables import Sizes


@dataclass(frozen=True, slots=True)
class Situation:
    """A call as far as it matters to speed: ``params`` and ``tensors`` are what the mask may read."""

    sizes: Sizes
    q_start: int
    params: Mapping[str, float]
    tensors: Mapping[str, Tensor]
    threads: int = field(default_factory=torch.get_num_threads)

    def bucket(self, density: float) -> Bucket:
        """The class of this call; ``density`` is the share of pairs in tiles that are visited."""
        s = self.sizes
        return Bucket(
            problems=near(s.batch * s.groups),
            group=near(s.heads // max(s.groups, 1)),
            queries=near(s.queries),
            keys=near(s.keys),
            density=2.0 ** round(math.log2(max(density, 2**-12))),
            threads=self.threads,
        )


@dataclass(frozen=True, slots=True)
class Bucket:
    """Calls of one class: all numbers but ``threads`` are the nearest powers of two.

    ``problems`` is B * G, ``group`` the query heads of a key head, ``density`` the share of pairs in visited tiles.
    """

    problems: int
    group: int
    queries: int
    keys: int
    density: float
    threads: int

    def __str__(self) -> str:
        share = f"1-{round(1 / self.density)}"
        return (
            f"p{self.problems}_g{self.group}_m{self.queries}_n{self.keys}_d{share}_t{self.threads}"
        )


def near(number: int) -> int:
    """The power of two that a positive number is nearest to, by ratio."""
    return 1 << round(math.log2(number)) if number > 0 else 0
