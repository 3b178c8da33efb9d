"""Turns a variant into its numeric deviation: our error over that of plain PyTorch, by length and score magnitude.

The method is that of "Is Flash Attention Stable?" (Golden et al., 2024, arXiv:2405.02803): the deviation of an
optimised kernel from a more precise baseline says little by itself, so it is put in proportion to what plain
arithmetic of the same precision deviates, over growing lengths. Baseline and plain arithmetic are the oracle's, in
float64 and in the element type. ``attncompiler check --numerics`` prints the report, ``numerics`` gives it to Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

import attncompiler.oracle
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.gradient_check import (
    Leaves,
    arguments_of,
    differentiated,
    leaves_of,
    loss_weights,
)
from attncompiler.ir.expr import Size, walk
from attncompiler.ir.program import Program
from attncompiler.mask_sample import sample_lengths
from attncompiler.variant import Variant
from attncompiler.yardstick import (
    Comparison,
    compare,
    compare_gradients,
    completed,
    plain_type,
    root_mean_square,
)

# float64 is the baseline: beside it no type of that precision can be judged.
DTYPES = ("float32", "bfloat16", "float16")
LENGTHS = (128, 512, 2048, 8192)
MAGNITUDES = (1.0, 4.0, 16.0, 64.0)
# Above _WHOLE scores the references are computed for three blocks of rows only, or, of a variant whose rows depend on
# each other, for all rows up to _LARGEST.
_WHOLE, _LARGEST = 2**22, 2**23
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Cell:
    """One result of one call. ``comparison`` has the largest absolute errors and the verdict.

    ``rms`` and ``plain_rms`` are root mean squares of the errors. Judged are the numbers that float64 says fit the
    type; ``overflows`` counts those of them that plain PyTorch gave as inf or nan: float32 is the yardstick there.
    """

    dtype: str
    queries: int
    keys: int
    magnitude: float
    comparison: Comparison
    rms: float
    plain_rms: float
    judged: int
    overflows: int

    @property
    def passed(self) -> bool:
        """Whether our largest error is at most twice that of plain PyTorch plus the floor."""
        return self.comparison.passed

    @property
    def ratio(self) -> float:
        """Our largest error over that of plain PyTorch; infinite where that has none to show."""
        return _ratio(self.comparison.error, self.comparison.plain_error)

    @property
    def rms_ratio(self) -> float:
        """The same of the root mean squares."""
        return _ratio(self.rms, self.plain_rms)

    @property
    def beyond_floor(self) -> bool:
        """Whether our error is more than a few units in the last place of the largest number."""
        return not self.comparison.error <= self.comparison.floor


@dataclass(frozen=True, slots=True)
class NumericsReport:
    """All cells, by type, length, magnitude and result; ``left_out`` says which lengths are missing and why."""

    variant: str
    heads: int
    kv_heads: int
    head_dim: int
    seed: int
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every cell passed."""
        return all(cell.passed for cell in self.cells)

    @property
    def worst(self) -> Cell | None:
        """The cell with the largest ratio; failures come before others, errors within their floor last."""
        return max(self.cells, key=lambda c: (not c.passed, c.beyond_floor, c.ratio), default=None)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can say it; numbers that are not finite are None."""
        names = ("variant", "heads", "kv_heads", "head_dim", "seed", "passed")
        head: dict[str, Any] = {name: getattr(self, name) for name in names}
        return head | {
            "left_out": list(self.left_out),
            "cells": [_as_dict(cell) for cell in self.cells],
        }


def numerics(
    variant: Variant,
    *,
    lengths: Sequence[int] | None = None,
    magnitudes: Sequence[float] = MAGNITUDES,
    dtypes: Sequence[str] = DTYPES,
    backend: Literal["auto", "cpp"] = "auto",
    gradients: bool = True,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 64,
    seed: int = 0,
    watch: Callable[[str], None] = lambda step: None,
) -> NumericsReport:
    """Compare a variant's kernels and plain PyTorch with float64: the output and gradients of a random loss.

    q, k and v are normal, q by such a factor that ``scale * <q, k>`` has the standard deviation ``magnitudes`` name,
    before ``prepare`` and ``score``. ``lengths`` are numbers of queries and keys; None means LENGTHS or, for a
    variant that states ``sample_lengths`` or has a layout, those and what is shorter. A layout's grid is filled.
    Without ``gradients`` only the output is compared. ``watch`` hears of each step before it is done.

    Up to 2**22 scores every row is compared. Beyond, three blocks of 64 rows are (the first, the last and one between),
    and the loss reads only these. Of a variant whose rows cannot be computed by themselves every row is compared up to
    2**23 scores, and longer calls are left out. Raises OutOfRangeError for a tensor that the oracle reads outside its
    extent, ValueError for a type that float64 cannot judge.
    """
    unknown = set(dtypes) - set(DTYPES)
    if unknown:
        raise ValueError(f"{', '.join(unknown)} cannot be judged by float64; choose from {DTYPES}")
    checker = Checker(variant, backend=backend)
    reason = whole_reason(variant, checker.operator.compilation.trace.program)
    cases, left_out = [], []
    for queries, keys in lengths_for(variant, lengths):
        sizes = Case(1, heads, kv_heads, queries, keys, head_dim, head_dim, seed=seed)
        case = checker.fitted(sizes)
        if reason is not None and heads * case.M * case.N > _LARGEST:
            left_out.append(f"{_length(case)} is left out: {reason}")
        elif case not in cases:
            cases.append(case)
    cells: list[Cell] = []
    for dtype, case, magnitude in product(dtypes, cases, magnitudes):
        watch(f"{dtype}  length {_length(case)}  magnitude {magnitude:g}")
        case = replace(case, dtype=dtype)
        cells += _Call(checker, case, magnitude, gradients, by_rows=reason is None).cells()
    return NumericsReport(
        type(variant).__name__, heads, kv_heads, head_dim, seed, tuple(cells), tuple(left_out)
    )


def lengths_for(variant: Variant, given: Sequence[int] | None) -> list[tuple[int, int]]:
    """Queries and keys of the calls, in the order of the rows of the table."""
    if given is not None:
        return [(length, length) for length in given]
    if variant.layout is None and variant.sample_lengths is Variant.sample_lengths:
        return [(length, length) for length in LENGTHS]
    sample = sample_lengths(variant)
    shorter = () if variant.layout is not None else (n for n in LENGTHS if n < min(sample))
    return [*((length, length) for length in shorter), sample]


def whole_reason(variant: Variant, program: Program) -> str | None:
    """Why a block of rows is not a call with ``q_start``; None where it is."""
    over_queries = next((t.name for t in program.tensors if "q" in t.axes), None)
    reasons = {
        "prepare sees all queries at once": hasattr(variant, "prepare"),
        f"tensor {over_queries!r} has a row for each query": over_queries is not None,
        "its layout wants whole grids": variant.layout is not None
        and variant.layout.permuted_by == "caller",
        "a formula reads the number of queries": Size("M")
        in walk(*(expr for _, expr in program.expressions())),
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    return why and f"all rows at once are too much for float64, and {why}"


class _Call:
    """One call of the kernel and its two references: the inputs, and which rows are compared."""

    def __init__(
        self, checker: Checker, case: Case, magnitude: float, gradients: bool, *, by_rows: bool
    ) -> None:
        self.variant, self.operator, self.case = checker.variant, checker.operator, case
        self.magnitude, self.gradients = magnitude, gradients
        q, k, v, tensors = checker.inputs(case)
        q = (_factor(checker.variant, case, magnitude) * q.double()).to(q.dtype)
        self.leaves, self.given = leaves_of(q, k, v, tensors, case.dtype)
        self.blocks = [slice(0, case.M)]
        if by_rows and case.H * case.M * case.N > _WHOLE and case.M > 3 * _BLOCK:
            starts = (0, (case.M - _BLOCK) // 2, case.M - _BLOCK)
            self.blocks = [slice(start, start + _BLOCK) for start in starts]
        shape = (case.B, case.H, case.M, case.Dv)
        drawn = loss_weights(self.leaves, case)("out", torch.empty(shape, dtype=torch.float64))
        self.weights = torch.zeros_like(drawn)
        for rows in self.blocks:
            self.weights[:, :, rows] = drawn[:, :, rows]

    def cells(self) -> Iterator[Cell]:
        """The output and, where wanted, one gradient for each leaf."""
        ours, exact = self._ours(), self._dense(torch.float64)
        narrow = plain_type(self.case.dtype) or getattr(torch, self.case.dtype)
        given = self._dense(narrow)
        plain = completed(given, exact, lambda: self._dense(torch.float32))
        judged = {name: exact[name].to(ours[name].dtype).isfinite() for name in ours}

        def kept(name: str, results: dict[str, Tensor]) -> Tensor:
            return torch.where(judged[name], results[name], 0)

        found = {name: (kept(name, ours), kept(name, plain), kept(name, exact)) for name in ours}
        out, *leaves = found.items()
        comparisons = [compare("out", *out[1])]
        if leaves:
            comparisons += compare_gradients(dict(leaves), self.case.dtype)
        for comparison, (name, (mine, dense, right)) in zip(
            comparisons, found.items(), strict=True
        ):
            yield Cell(
                self.case.dtype,
                self.case.M,
                self.case.N,
                self.magnitude,
                comparison,
                rms=root_mean_square(mine, right),
                plain_rms=root_mean_square(dense, right),
                judged=int(judged[name].sum()),
                overflows=int((~given[name].isfinite()).sum()),
            )

    def _ours(self) -> dict[str, Tensor]:
        def call(leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
            q, k, v, tensors = arguments_of(leaves, self.given)
            return self.operator(q, k, v, **tensors), {}

        with torch.no_grad():
            out = call(self.leaves)[0]
        found = {"out": torch.cat([out[:, :, rows] for rows in self.blocks], 2)}
        if self.gradients:
            found |= differentiated(
                call, self.leaves, lambda name, like: self.weights.to(like.dtype)
            )
        return found

    def _dense(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The same by the oracle in ``dtype``, block by block; each is a call that starts at its first row."""
        wide = {n: x.double().requires_grad_(self.gradients) for n, x in self.leaves.items()}
        q, k, v, tensors = arguments_of(wide, self.given)
        parts, sums = (
            [],
            {name: torch.zeros_like(x, requires_grad=False) for name, x in wide.items()},
        )
        for rows in self.blocks:
            out = attncompiler.oracle.attention(
                self.variant, q[:, :, rows], k, v, q_start=rows.start, tensors=tensors, dtype=dtype
            ).out
            parts.append(out.detach())
            if not out.requires_grad:
                continue
            weights = self.weights[:, :, rows].to(dtype)
            found = torch.autograd.grad(out, list(wide.values()), weights, allow_unused=True)
            for name, gradient in zip(wide, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient
        results = {"out": torch.cat(parts, 2)}
        if self.gradients:
            results |= {name: x.to(dtype) for name, x in sums.items()}
        return results


def _factor(variant: Variant, case: Case, magnitude: float) -> float:
    """What the drawn queries, of standard deviation 2, are multiplied by."""
    scale = case.D**-0.5 if variant.scale is None else abs(float(variant.scale))
    return magnitude / (2 * scale * math.sqrt(case.D)) if scale else 1.0


def _ratio(error: float, plain_error: float) -> float:
    return 0.0 if error == 0 else error / plain_error if plain_error else math.inf


def _length(case: Case) -> str:
    return str(case.M) if case.M == case.N else f"{case.M}x{case.N}"


def _as_dict(cell: Cell) -> dict[str, Any]:
    comparison = cell.comparison
    numbers = {
        "ratio": cell.ratio,
        "error": comparison.error,
        "plain_error": comparison.plain_error,
        "limit": comparison.limit,
        "rms_ratio": cell.rms_ratio,
        "rms": cell.rms,
        "plain_rms": cell.plain_rms,
    }
    return {
        "result": comparison.what,
        "dtype": cell.dtype,
        "queries": cell.queries,
        "keys": cell.keys,
        "magnitude": cell.magnitude,
        "passed": cell.passed,
        "judged": cell.judged,
        "overflows": cell.overflows,
        **{name: x if math.isfinite(x) else None for name, x in numbers.items()},
    }
