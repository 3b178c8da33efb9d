"""Turns a variant and a list of cases into a report: its kernel's error against the float64 oracle, case by case.

The yardstick is plain PyTorch in the same element type (the oracle's own formulas without the float64): a kernel
passes with at most twice that error plus a floor of a few units in the last place of the largest result. The floor
is needed because plain PyTorch is sometimes exact by luck, for one key for example, and every kernel rounds its
result once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

import attncompiler.oracle
from attncompiler.cases import Case, draw_cases
from attncompiler.compiler import compile as compile_variant
from attncompiler.errors import OutOfRangeError
from attncompiler.gradient_check import Leaves, Reference, arguments_of, gradients, leaves_of
from attncompiler.ir.expr import Load, axes_of, walk
from attncompiler.ir.program import Program

if TYPE_CHECKING:
    from attncompiler.dsl import Variant
    from attncompiler.layouts import Boxes
from attncompiler.yardstick import Comparison as Comparison
from attncompiler.yardstick import (
    compare,
    compare_gradients,
    completed,
    draw_inputs,
    judged,
    named,
    plain_type,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one case gave: its comparisons, or the out-of-range read that stopped it."""

    case: Case
    comparisons: tuple[Comparison, ...] = ()
    fault: OutOfRangeError | None = None

    @property
    def passed(self) -> bool:
        """Whether every result is within its limit and nothing was read out of range."""
        return self.fault is None and all(c.passed for c in self.comparisons)

    @property
    def worst(self) -> Comparison | None:
        """The comparison that failed, or came closest to it."""
        return max(self.comparisons, key=lambda c: (not c.passed, c.ratio), default=None)

    def describe(self) -> str:
        """The failure in words: which number is wrong, or which line reads outside which tensor."""
        if self.fault is not None:
            return str(self.fault)
        worst = self.worst
        if worst is None:
            return "nothing was compared"
        return (
            f"{worst.what}{list(worst.position)} is {worst.found:.6g}, expected {worst.expected:.6g}: "
            f"error {worst.error:.2e}, plain PyTorch {worst.plain_error:.2e}, limit {worst.limit:.2e}"
        )


@dataclass(frozen=True, slots=True)
class Report:
    """The outcomes of all cases."""

    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether no case failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes that did not pass."""
        return tuple(o for o in self.outcomes if not o.passed)

    def summary(self) -> str:
        """For each element type the worst error relative to its limit, and the case with its seed."""
        lines = []
        for dtype in dict.fromkeys(o.case.dtype for o in self.outcomes):
            mine = [o for o in self.outcomes if o.case.dtype == dtype]
            compared = [(c, o.case) for o in mine for c in o.comparisons]
            if not compared:
                continue
            worst, case = max(compared, key=lambda pair: pair[0].ratio)
            cases = "case " if len(mine) == 1 else "cases"
            lines.append(
                f"{dtype:<9}{len(mine):4d} {cases}  worst error {worst.error:.2e} in {worst.what}"
                f" (plain PyTorch {worst.plain_error:.2e}, limit {worst.limit:.2e})  {case}"
            )
        return "\n".join(lines)


class Checker:
    """Compiles a variant once and runs cases on it."""

    _reads_keys_at_queries = False
    _layout: Boxes | None = None

    def __init__(
        self,
        variant: Variant,
        *,
        backend: Literal["auto", "cpp"] = "auto",
        gradients: bool = False,
    ) -> None:
        self.variant, self.with_gradients = variant, gradients
        self.operator = compile_variant(variant, backend=backend)
        self._layout = variant.layout
        self._reads_keys_at_queries = reads_keys_at_queries(self.operator.compilation.trace.program)

    def build(self, cases: Iterable[Case]) -> Iterator[str]:
        """Build the kernels that the cases need, several at once; gives the name of each as it is done."""
        if hasattr(self.variant, "prepare"):
            return  # the kernel's head dimensions are known when prepare has run
        shapes = dict.fromkeys((case.dtype, case.D, case.Dv) for case in cases)

        def build_one(shape: tuple[str, int, int]) -> str:
            dtype, head_dim, value_dim = shape
            self.operator.build(dtype=getattr(torch, dtype), head_dim=head_dim, value_dim=value_dim)
            return f"{dtype} D={head_dim} Dv={value_dim}"

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from pool.map(build_one, shapes)

    def report(self, cases: Iterable[Case]) -> Report:
        """Run every case."""
        return Report(tuple(self.run(case) for case in cases))

    def run(self, case: Case) -> Outcome:
        """One call of the kernel and two of the oracle, on the numbers of ``case.seed``."""
        case = self.fitted(case)
        q, k, v, tensors = self.inputs(case)

        def oracle(dtype: torch.dtype | None, order: int = 0) -> dict[str, Tensor]:
            result = attncompiler.oracle.attention(
                self.variant,
                q,
                k,
                v,
                q_start=case.q_start,
                tensors=tensors,
                dtype=dtype,
                order=order,
            )
            return named(result.out, result.stats)

        try:
            exact = oracle(torch.float64)
        except OutOfRangeError as fault:
            return Outcome(case, fault=fault)
        out, stats = self.operator(q, k, v, q_start=case.q_start, return_stats=True, **tensors)
        mine = named(out, stats)

        def compared(order: int) -> tuple[Comparison, ...]:
            plain = oracle(plain_type(case.dtype, order), order)
            plain = completed(plain, exact, lambda: oracle(torch.float32, order))
            return tuple(compare(name, mine[name], plain[name], x) for name, x in exact.items())

        comparisons = judged(compared)
        if self.with_gradients:
            comparisons += self.gradients(case)
        return Outcome(case, comparisons)

    def gradients(self, case: Case) -> tuple[Comparison, ...]:
        """One comparison for q, k, v and each floating tensor; see ``gradient_check.py``."""
        case = self.fitted(case)
        leaves, given = leaves_of(*self.inputs(case), case.dtype)

        def compared(order: int) -> tuple[Comparison, ...]:
            plain = self.reference(given, case, order) if order else None
            exact = self.reference(given, case)
            found = gradients(exact, self.operator, leaves, given, case, plain)
            return compare_gradients(found, case.dtype)

        return judged(compared)

    def reference(self, given: Mapping[str, Any], case: Case, order: int = 0) -> Reference:
        """The variant's own formulas in a type, as a function of leaves; ``order`` as for the oracle."""

        def call(leaves: Leaves, dtype: torch.dtype | None) -> tuple[Tensor, dict[str, Tensor]]:
            q, k, v, tensors = arguments_of(leaves, given)
            result = attncompiler.oracle.attention(
                self.variant,
                q,
                k,
                v,
                q_start=case.q_start,
                tensors=tensors,
                dtype=dtype,
                order=order,
            )
            return result.out, result.stats

        return call

    def fitted(self, case: Case) -> Case:
        """The case with enough keys, where the variant reads a tensor over keys at the position of a query.

        A layout wants all tokens of its grid on both sides; every other case has some behind it.
        """
        if self._layout is not None:
            least = self._layout.size + case.seed % 2 * 7
            case = replace(case, M=max(case.M, least), N=max(case.N, least), q_start=0)
        if not self._reads_keys_at_queries:
            return case
        return replace(case, N=max(case.N, case.q_start + case.M))

    def inputs(self, case: Case) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """q, k, v in the case's layout and the variant's own tensors, drawn from the case's seed."""
        return draw_inputs(case, self.variant.sample, prepares=hasattr(self.variant, "prepare"))

    def shrink(self, failure: Outcome) -> Outcome:
        """The smallest failing case reachable by making one size or property simpler at a time."""
        smallest = failure
        while True:
            candidates = map(self.fitted, smallest.case.smaller())
            simpler = (self.run(case) for case in candidates if case != smallest.case)
            found = next((outcome for outcome in simpler if not outcome.passed), None)
            if found is None:
                return smallest
            smallest = found


def check(
    variant: Variant,
    *,
    cases: int = 32,
    seed: int = 0,
    backend: Literal["auto", "cpp"] = "auto",
    gradients: bool = True,
) -> Report:
    """Compare a variant's kernels with its formulas on ``cases`` awkward calls drawn from ``seed``."""
    drawn = draw_cases(seed, cases, ("float32", "bfloat16", "float16", "float64"))
    return Checker(variant, backend=backend, gradients=gradients).report(drawn)


def reads_keys_at_queries(program: Program) -> bool:
    """Whether some tensor over keys is indexed by a query position, as document ids are."""
    axes = {t.name: t.axes for t in program.tensors}
    return any(
        axis == "k" and "q" in axes_of(index)
        for node in walk(*(expr for _, expr in program.expressions()))
        if isinstance(node, Load)
        for axis, index in zip(axes[node.tensor], node.indices, strict=True)
    )
