"""The dense definition that a package carries agrees with the oracle: results, statistics and gradients."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from attncompiler.artifact.definition import Definition
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.compiler import compile_levels
from attncompiler.dsl import Boxes, Variant, bit_length, exp, log, maximum, to_float, where
from attncompiler.dsl import Tensor as Declared
from attncompiler.frontend import trace
from attncompiler.gradient_check import (
    Leaves,
    arguments_of,
    differentiated,
    leaves_of,
    loss_weights,
)
from attncompiler.variant_file import load_variant
from tests.example_table import files

CASES = [
    Case(B=2, H=6, G=2, M=23, N=49, D=16, Dv=12, q_start=21, dtype="float64", seed=1),
    Case(B=1, H=3, G=1, M=37, N=21, D=16, Dv=12, dtype="float64", seed=2),
]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which packages are imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("carried_"):
            del sys.modules[name]


def dense_of(variant: Variant, folder: Path) -> ModuleType:
    """The module ``dense`` of a package without kernels."""
    name = f"carried_{folder.name.replace('-', '_')}"
    for path, text in Definition(compile_levels(trace(variant))).files().items():
        target = folder / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    (folder / name / "__init__.py").write_text("")
    return importlib.import_module(f"{name}.dense")


def compared(variant: Variant, dense: ModuleType, case: Case) -> None:
    checker = Checker(variant)
    case = checker.fitted(case)
    leaves, given = leaves_of(*checker.inputs(case), case.dtype)

    def printed(mine: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v, tensors = arguments_of(mine, given)
        result: Any = dense.attention(
            q, k, v, q_start=case.q_start, return_stats=True, dtype=torch.float64, **tensors
        )
        return result

    oracle = checker.reference(given, case)
    for (name, found), wanted in zip(
        named(*printed(leaves)), dict(named(*oracle(leaves, torch.float64))).values(), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10, equal_nan=True, msg=name)
    weights = loss_weights(leaves, case)
    wanted_grads = differentiated(lambda x: oracle(x, torch.float64), leaves, weights)
    for name, found in differentiated(printed, leaves, weights).items():
        torch.testing.assert_close(
            found, wanted_grads[name], rtol=1e-8, atol=1e-8, equal_nan=True, msg=name
        )


def named(out: Tensor, stats: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [("out", out), *stats.items()]


class Awkward(Variant):
    """Names of the printed code as names of the user, empty rows, whole division, digits, literals in functions."""

    scale: float = 0.6
    real: float = 1.5
    at_q: int = 3
    dot = Declared("h")
    value = Declared("position", 2, dtype="int", low=0, high=5)
    out = Declared("d")
    batch = Declared()

    def mask(self, at: Any) -> Any:
        return (at.k + self.at_q < at.q) & (self.value[at.k, -1] != self.value[at.q, 0] - 9)

    def score(self, s: Any, at: Any) -> Any:
        bits = bit_length(at.q // (at.k % 3) + at.q % self.at_q)
        near = where(at.q == at.k + 4, 0.5, maximum(s, -1.0))
        return (
            near * self.real
            + self.dot[at.h] * log(to_float(at.q - at.k - self.at_q))
            + self.scale * bits
        )

    def normalize(self, s: Any, row: Any) -> Any:
        m = maximum(row.max(s), self.batch)
        row.keep("top", m)
        row.keep("low", row.min(s) * 0.5)
        return exp(s - m) / row.count()

    def output(self, o: Any, at: Any) -> Any:
        return (o - at.mean(o)) * self.out[at.d] / (at.max(abs(o)) + 2.0**self.real) + at.N / at.Dv

    def sample(self, sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        length = max(sizes["N"], sizes["q_start"] + sizes["M"])
        return super().sample(sizes | {"position": length}, generator)


def test_the_printed_definition_of_an_awkward_variant(packages: Path) -> None:
    dense = dense_of(Awkward(), packages)
    for case in (*CASES, replace(CASES[0], N=0), replace(CASES[1], B=0)):
        compared(Awkward(), dense, case)


class Turned(Variant):
    """Tokens that the caller permutes."""

    layout = Boxes((4, 6), (2, 3), permuted_by="caller")

    def mask(self, at: Any) -> Any:
        return (at.k <= at.q) | (at.k >= 24)

    def score(self, s: Any, at: Any) -> Any:
        return s - 0.1 * abs(at.q - at.k)


def test_the_printed_definition_of_permuted_tokens(packages: Path) -> None:
    compared(Turned(), dense_of(Turned(), packages), CASES[1])


# A sixth of them is enough every time.
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] if i % 6 else [], id=path.stem)
        for i, path in enumerate(files())
    ],
)
def test_the_printed_definition_of_an_example_is_the_example(path: Path, packages: Path) -> None:
    variant = load_variant(path)
    dense = dense_of(variant, packages)
    for case in CASES:
        compared(variant, dense, case)
    compared(variant, dense, replace(CASES[1], N=1, seed=3))
