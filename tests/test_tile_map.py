"""Tile maps: classification by enumeration, the merging law, counts, ratios and the drawing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attncompiler import mask_sample
from attncompiler.dsl import Tensor as Declared
from attncompiler.dsl import Variant, causal
from attncompiler.errors import DeclarationError, OutOfRangeError, SlotFailedError
from attncompiler.mask_sample import sample_lengths, sample_map
from attncompiler.tile_map import EMPTY, FULL, PARTIAL, TileMap
from attncompiler.variant_file import load_variant
from tests.example_table import EXAMPLES


def lower(queries: int, keys: int) -> Tensor:
    return torch.ones(1, 1, queries, keys, dtype=torch.bool).tril()


def enumerated(allowed: Tensor, tile: tuple[int, int]) -> list[list[int]]:
    """States of one head, tile by tile."""
    return [
        [
            FULL if bool(block.all()) else PARTIAL if bool(block.any()) else EMPTY
            for block in band.split(tile[1], dim=1)
        ]
        for band in allowed.split(tile[0], dim=0)
    ]


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """Masks with empty, full and mixed regions, whose edges cut tiles."""
    shape = draw(st.tuples(*[st.integers(1, 2)] * 2, *[st.integers(1, 23)] * 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    coarse = torch.rand(shape, generator=generator)[..., ::4, ::4]
    blocks = coarse.repeat_interleave(4, -2).repeat_interleave(4, -1)
    noise = torch.rand(shape, generator=generator)
    return noise < (3 * blocks - 1)[..., : shape[-2], : shape[-1]]


@given(masks(), *[st.integers(1, 5)] * 4)
def test_a_coarser_map_made_of_a_finer_one_is_the_enumerated_one(
    mask: Tensor, rows: int, columns: int, by_rows: int, by_columns: int
) -> None:
    fine = TileMap.of_pairs("drawn", mask, (rows, columns))
    tile = rows * by_rows, columns * by_columns
    merged, direct = fine.merged(tile), TileMap.of_pairs("drawn", mask, tile)
    assert torch.equal(merged.states, direct.states)
    assert torch.equal(merged.allowed, direct.allowed)
    for b, h in torch.cartesian_prod(*map(torch.arange, mask.shape[:2])).tolist():
        assert merged.one(b, h).states[0, 0].tolist() == enumerated(mask[b, h], tile)


@given(masks(), *[st.integers(1, 9)] * 2)
def test_visited_pairs_are_those_of_tiles_that_are_not_empty(
    mask: Tensor, rows: int, columns: int
) -> None:
    drawn = TileMap.of_pairs("drawn", mask, (rows, columns))
    visited = masked = 0
    for head in mask.flatten(0, 1):
        blocks = [b for band in head.split(rows) for b in band.split(columns, 1)]
        visited += sum(b.numel() for b in blocks if b.any())
        masked += sum(b.numel() for b in blocks if b.any() and not b.all())
    assert (int(drawn.visited.sum()), int(drawn.masked.sum())) == (visited, masked)
    assert drawn.work == visited / mask.numel()
    assert drawn.density == int(mask.sum()) / mask.numel()
    assert drawn.density <= drawn.work
    assert drawn.tiling_speedup <= drawn.speedup_bound
    assert sum(drawn.counts.values()) == drawn.states.numel()


def test_causal_tiles_by_hand() -> None:
    drawn = TileMap.of_pairs("causal", lower(16, 16), (4, 4))
    assert drawn.counts == {EMPTY: 6, PARTIAL: 4, FULL: 6}
    assert int(drawn.visited) == 160
    assert int(drawn.masked) == 64
    assert drawn.speedup_bound == 256 / 136
    assert drawn.tiling_speedup == 256 / 160
    assert drawn.text() == (
        "query  keys 0 to 15, 4 a character\n    0  +...\n    4  #+..\n    8  ##+.\n   12  ###+"
    )


def test_cut_tiles_count_what_they_hold() -> None:
    drawn = TileMap.of_pairs("causal", lower(5, 7), (4, 4))
    assert drawn.states[0, 0].tolist() == [[PARTIAL, EMPTY], [FULL, PARTIAL]]
    assert int(drawn.visited) == 16 + 4 + 3


def test_a_drawing_merges_tiles_that_are_too_many() -> None:
    drawn = TileMap.of_pairs("causal", lower(16, 16), (1, 1), q_start=100)
    assert drawn.text(4).splitlines()[1:] == ["  100  ++..", "  108  ##++"]
    assert drawn.text(1).splitlines()[1:] == ["  100  +"]


def test_a_drawing_shows_the_head_it_is_asked_for() -> None:
    both = torch.cat([lower(4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)], dim=1)
    drawn = TileMap.of_pairs("two heads", both, (2, 2))
    assert drawn.text(head=1).splitlines()[1:] == ["    0  ##", "    2  ##"]
    assert drawn.one(batch=3, head=1).density == 1.0  # batches are alike: there is one for all
    with pytest.raises(IndexError):
        drawn.one(head=2)


def test_masks_without_pairs() -> None:
    nothing = TileMap.of_pairs("none", torch.zeros(1, 1, 3, 3, dtype=torch.bool), (2, 2))
    assert (nothing.work, nothing.density) == (0.0, 0.0)
    assert nothing.speedup_bound == nothing.tiling_speedup == math.inf
    empty = TileMap.of_pairs("no rows", torch.zeros(1, 1, 0, 3, dtype=torch.bool), (2, 2))
    assert (empty.work, int(empty.visited)) == (0.0, 0)
    assert len(empty.text().splitlines()) == 1


@pytest.mark.parametrize("tile", [(6, 8), (2, 4), (0, 4)])
def test_tiles_that_cannot_be_merged(tile: tuple[int, int]) -> None:
    drawn = TileMap.of_pairs("causal", lower(16, 16), (4, 4))
    with pytest.raises(ValueError, match="not made of tiles"):
        drawn.merged(tile)


class Gated(Variant):
    """Each head has a window of its own; ``prepare`` makes it."""

    sample_lengths = (24, 32)
    window = Declared("h", dtype="int", low=1, high=9)
    reach = Declared("h", dtype="int")

    def prepare(self, q, k, v, window):
        return q, k, v, {"reach": window * 2}

    def mask(self, at):
        return causal(at) & (at.q - at.k < self.reach[at.h])


def test_a_sampled_map_runs_the_variants_own_methods() -> None:
    drawn = sample_map(Gated(), heads=3, tile=(8, 8))
    assert drawn.lengths == (24, 32)
    assert tuple(drawn.states.shape) == (1, 3, 3, 4)
    window = Gated().sample({"H": 3}, torch.Generator().manual_seed(0))["window"]
    distance = torch.arange(24)[:, None] - torch.arange(32)
    expected = [int(((distance >= 0) & (distance < 2 * w)).sum()) for w in window]
    assert drawn.allowed.tolist() == [expected]


def test_axes_that_a_mask_does_not_read_have_extent_one() -> None:
    class Plain(Variant):
        pass

    for variant, count in ((Plain(), 64), (Gated(), None)):
        drawn = sample_map(variant, (8, 8), (4, 4), batch=2, heads=2)
        assert drawn.states.shape[0] == 1
        assert count is None or drawn.allowed.tolist() == [[count]]


def test_what_a_mask_cannot_be_shown_at() -> None:
    class Short(Variant):
        table = Declared(4, dtype="bool")

        def mask(self, at):
            return self.table[at.k]

    class Odd(Variant):
        sample_lengths = (3, 4, 5)

    class Broken(Variant):
        length = Declared("b", dtype="int")

        def mask(self, at):
            return at.k < self.length[at.b]

        def sample(self, sizes, generator):
            raise RuntimeError("mine")

    assert sample_map(Short(), (4, 4)).lengths == (4, 4)
    with pytest.raises(OutOfRangeError, match="'table' is out of range"):
        sample_map(Short(), (4, 5))
    with pytest.raises(DeclarationError, match="neither a length nor a pair"):
        sample_lengths(Odd())
    with pytest.raises(SlotFailedError, match=r"Broken\.sample stops with RuntimeError: mine"):
        sample_map(Broken())


@pytest.mark.parametrize(
    "name", ["packed_documents", "duo_attention", "halonet", "power_attention"]
)
def test_long_maps_come_from_the_planning_kernel(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = load_variant(EXAMPLES / f"{name}.py")
    by_pairs = sample_map(variant, tile=(24, 40), batch=2, heads=4)
    monkeypatch.setattr(mask_sample, "LONGEST", 0)
    planned = sample_map(variant, tile=(24, 40), batch=2, heads=4)
    shape = torch.broadcast_shapes(by_pairs.states.shape, planned.states.shape)
    assert torch.equal(by_pairs.states.expand(shape), planned.states.expand(shape))
    assert torch.equal(by_pairs.allowed.expand(shape[:2]), planned.allowed.expand(shape[:2]))
