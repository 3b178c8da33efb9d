"""Coordinates of a position in a row-major grid."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from attncompiler.dsl import coords


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_coordinates_give_the_position_back(grid: list[int]) -> None:
    shape = tuple(grid)
    position = torch.arange(torch.Size(shape).numel())
    wanted = torch.unravel_index(position, shape)
    found = coords(position, shape)
    assert len(found) == len(shape)
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
