"""Every example trains: its operator's gradients are those of its formula, by autograd and by finite differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.variant_file import load_variant
from tests.example_table import files
from tests.gradients import describe, gradcheck, row_major

pytestmark = pytest.mark.usefixtures("quick_builds")

# One forward and one backward kernel an element type; lengths, groups, offsets and strides are run-time values.
FLOAT64 = [
    Case(B=2, H=6, G=2, M=13, N=37, D=16, Dv=24, q_start=24, seed=1),
    Case(B=1, H=3, G=1, M=129, N=257, D=16, Dv=24, q_start=64, layout="swapped", seed=2),
    Case(B=2, H=2, G=2, M=63, N=19, D=16, Dv=24, q_start=1, layout="padded", seed=3),
    Case(B=3, H=4, G=1, M=5, N=7, D=16, Dv=24, layout="broadcast", seed=4),
    Case(B=1, H=1, G=1, M=3, N=1, D=16, Dv=24, seed=5),
]
TINY = Case(B=1, H=2, G=1, M=3, N=5, D=16, Dv=24, q_start=2, seed=6)
NARROW = [
    Case(B=2, H=4, G=2, M=63, N=129, D=16, Dv=24, q_start=66, seed=7),
    Case(B=1, H=3, G=1, M=129, N=63, D=16, Dv=24, layout="swapped", seed=8),
]


def in_type(dtype: str, cases: list[Case]) -> list[Case]:
    return [replace(case, dtype=dtype) for case in cases]


def assert_gradients(path: Path, cases: list[Case]) -> Checker:
    checker = Checker(load_variant(path))
    wrong = {str(case): describe(checker.gradients(case)) for case in cases}
    assert not any(wrong.values()), "\n".join(f"{case}\n{text}" for case, text in wrong.items())
    return checker


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_the_gradient_is_that_of_the_formula(path: Path) -> None:
    checker = assert_gradients(path, in_type("float64", FLOAT64))
    small = row_major(checker.variant)  # a whole grid has too many numbers to disturb one by one
    gradcheck(
        checker if small is checker.variant else Checker(small), in_type("float64", [TINY])[0]
    )


# Two kernels take seconds to build; these types differ from float64 in loads, stores and products only.
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] if i % 16 else [], id=path.stem)
        for i, path in enumerate(files())
    ],
)
def test_narrow_types_are_as_exact_as_plain_pytorch(path: Path, dtype: str) -> None:
    assert_gradients(path, in_type(dtype, NARROW))
