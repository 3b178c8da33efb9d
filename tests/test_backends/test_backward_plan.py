"""How a backward's work is shared out: no two tasks add to one place, and copies stay small."""

from __future__ import annotations

from math import prod

import pytest

from attncompiler.compiler import compile_levels
from attncompiler.dsl import Tensor, Variant
from attncompiler.frontend import trace
from attncompiler.ir.passes.differentiate import differentiate
from attncompiler.ir.passes.lower_gradient import lower_gradient
from attncompiler.runtime.backward_plan import (
    COPIES_LIMIT,
    Separation,
    Sharing,
    copies,
    share_out,
)
from attncompiler.runtime.description import separation

NOWHERE = Separation(batches=False, groups=False, rows_of_head=False, rows=False)
EVERYWHERE = Separation(batches=True, groups=True, rows_of_head=True, rows=True)


class Indexed(Variant):
    """Tensors that are and are not separate along batches, heads and queries."""

    whole = Tensor("b", "h", "q")
    by_head = Tensor("h", "k")
    by_group = Tensor("g", "q")
    turned = Tensor("b", "b")
    mixed = Tensor("h")
    table = Tensor(8)

    def score(self, s, at):  # type: ignore[no-untyped-def]
        s = s * self.whole[at.b, at.h, at.q] + self.by_head[at.h, at.k] + self.by_group[at.g, at.q]
        s = s + self.turned[at.b, 0] * self.turned[0, at.b] + self.mixed[at.h] * self.mixed[0]
        return s + self.table[at.b % 8]


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ("whole", EVERYWHERE),
        ("by_head", Separation(batches=False, groups=True, rows_of_head=False, rows=False)),
        ("by_group", Separation(batches=False, groups=True, rows_of_head=True, rows=False)),
        ("turned", NOWHERE),
        ("mixed", NOWHERE),
        ("table", NOWHERE),
    ],
)
def test_separation_follows_from_the_indices(tensor: str, expected: Separation) -> None:
    gradient = differentiate(compile_levels(trace(Indexed())).plan)
    names = frozenset(t.name for t in gradient.program.tensors)
    assert separation(lower_gradient(gradient, names), tensor) == expected


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 4096), (1, 8, 2, 500), (3, 6, 6, 70), (64, 16, 4, 9)])
@pytest.mark.parametrize("separate", [NOWHERE, EVERYWHERE])
@pytest.mark.parametrize("size", [4, 2**20, 2**30])
def test_copies_stay_small_and_threads_busy(
    sizes: tuple[int, int, int, int], separate: Separation, size: int, threads: int
) -> None:
    batch, heads, groups, queries = sizes
    found = share_out(sizes, [(separate, size)], threads)
    count = prod(copies(separate, found, batch, heads, groups))
    assert (count - 1) * size <= max(COPIES_LIMIT, 2 * size)
    tasks = found.parts * (1 if found.serial_b else batch) * (1 if found.serial_g else groups)
    blocks = heads // groups * queries // 64
    if size == 4 or separate is EVERYWHERE:
        assert tasks >= min(threads, batch * groups * max(blocks, 1) // 2)
    assert found.parts <= threads


def test_one_thread_makes_no_copies() -> None:
    assert share_out((8, 8, 8, 4096), [(NOWHERE, 4)], 1) == Sharing(1, True, True)


def test_rows_of_a_group_of_heads_share_what_only_the_query_separates() -> None:
    by_query = Separation(batches=True, groups=True, rows_of_head=True, rows=False)
    sharing = Sharing(4, False, False)
    assert copies(by_query, sharing, 2, 6, 6) == (1, 1, 1)
    assert copies(by_query, sharing, 2, 6, 2) == (1, 1, 4)
