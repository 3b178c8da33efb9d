"""Every example's Triton kernels, interpreted: outputs, statistics and gradients are those of its formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attncompiler.cases import Case
from attncompiler.variant_file import load_variant
from tests.example_table import files
from tests.gradients import describe
from tests.triton_calls import DTYPES, checker, failures, use_tiles

# Two tiles of queries, two or three of keys, whole ones and pieces.
CALLS = [
    Case(B=1, H=2, G=1, M=70, N=131, D=16, Dv=24, q_start=61, seed=1),
    Case(B=2, H=1, G=1, M=129, N=66, D=24, Dv=16, layout="padded", seed=2),
    Case(B=1, H=2, G=2, M=63, N=129, D=16, Dv=24, q_start=30, layout="swapped", seed=3),
]
TILES = [(64, 64), (64, 128), (128, 64)]
# Interpreted, a forward takes half a second and its backward another: every time each example runs forward in one type,
# and a few of them backward as well.
TURNS = [
    pytest.param(
        path, turn, gradients, id=f"{path.stem}-{DTYPES[turn]}{'-gradients' * gradients}",
        marks=[] if (number + turn) % 3 == 0 and (number // 3 % 6 == 0 or not gradients) else [pytest.mark.slow],
    )
    for number, path in enumerate(files()) for turn in range(3) for gradients in (False, True)
]  # fmt: skip


@pytest.mark.parametrize(("path", "turn", "gradients"), TURNS)
def test_an_example(path: Path, turn: int, gradients: bool) -> None:
    mine = checker(load_variant(path))
    number = files().index(path) // 3
    # A layout wants all tokens of its grid.
    large = mine.variant.layout is not None
    use_tiles(mine.operator, *((256, 256) if large else TILES[number % 3]))
    case = replace(CALLS[(turn + number) % 3], dtype=DTYPES[turn])
    if gradients:
        assert not describe(mine.gradients(case))
    else:
        assert not failures(mine, [case], gradients=False)


@pytest.mark.slow
@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_longer_calls(path: Path) -> None:
    mine = checker(load_variant(path))
    use_tiles(mine.operator, 64, 32)
    cases = [
        Case(B=1, H=3, G=1, M=127, N=257, D=31, Dv=72, q_start=130, seed=4),
        Case(B=2, H=2, G=2, M=257, N=63, D=16, Dv=16, layout="broadcast", seed=5),
        Case(B=1, H=1, G=1, M=5, N=1, D=16, Dv=24, seed=6),
    ]
    assert not failures(mine, cases)
