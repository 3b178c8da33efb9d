"""Every example compiles, agrees with its own formula on awkward calls, and stands in the table of its README."""

from __future__ import annotations

from pathlib import Path

import pytest

from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.variant_file import load_variant
from tests.example_table import README, files, idea_and_paper, table

# One kernel an element type; lengths, groups, offsets and strides are run-time values.
FLOAT32 = [
    Case(B=2, H=6, G=2, M=63, N=129, D=16, Dv=24, q_start=66, seed=1),
    Case(B=1, H=3, G=1, M=129, N=257, D=16, Dv=24, layout="swapped", seed=2),
    Case(B=2, H=2, G=2, M=127, N=63, D=16, Dv=24, q_start=1, layout="padded", seed=3),
    Case(B=1, H=1, G=1, M=5, N=1, D=16, Dv=24, seed=4),
]
BFLOAT16 = [
    Case(B=2, H=8, G=1, M=257, N=129, D=16, Dv=24, dtype="bfloat16", seed=5),
    Case(B=1, H=3, G=3, M=63, N=127, D=16, Dv=24, q_start=64, dtype="bfloat16", seed=6),
]


def test_there_are_examples() -> None:
    assert len(files()) >= 26


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_an_example_is_one_idea_from_a_paper(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40
    idea, paper = idea_and_paper(path)
    assert idea
    assert paper
    load_variant(path)  # raises when the file defines none or several


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_the_kernel_is_the_formula(path: Path) -> None:
    _check(path, FLOAT32)


# A kernel takes seconds to build and this type differs in its loads and stores only, so a third is enough every time.
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] if i % 3 else [], id=path.stem)
        for i, path in enumerate(files())
    ],
)
def test_the_bfloat16_kernel_is_the_formula(path: Path) -> None:
    _check(path, BFLOAT16)


def _check(path: Path, cases: list[Case]) -> None:
    report = Checker(load_variant(path)).report(cases)
    assert report.passed, "\n".join(f"{o.case}\n{o.describe()}" for o in report.failures)


def test_the_table_is_up_to_date() -> None:
    assert README.read_text() == table(), "write it anew: python tests/example_table.py"
