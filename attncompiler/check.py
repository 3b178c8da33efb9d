"""Turns a variant and a list of cases into a report: its kernel's error against the float64 oracle, case by case.

The yardstick is plain PyTorch in the same element type (the oracle's own formulas without the float64): a kernel
passes with at most twice that error plus a floor of a few units in the last place of the largest result. The floor
is needed because plain PyTorch is sometimes exact by luck, for one key for example, and every kernel rounds its
result once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

import attncompiler.oracle
from attncompiler.cases import Case, draw_cases
from attncompiler.compiler import compile as compile_variant
from attncompiler.errors import OutOfRangeError
from attncompiler.gradient_check import gradients, leaves_of
from attncompiler.ir.expr import Load, axes_of, walk
from attncompiler.ir.program import Program

if TYPE_CHECKING:
    from attncompiler.dsl import Variant
    from attncompiler.layouts import Boxes
from attncompiler.oracle import OracleResult

# Results of 16-bit types are rounded once from a float32 sum; for the wider types the sum itself rounds too.
_FLOOR_UNITS = {torch.float16: 1.0, torch.bfloat16: 1.0, torch.float32: 8.0, torch.float64: 8.0}
# Plain PyTorch in float64 is the oracle itself and shows no error. Rounding errors are proportional to the unit
# of the type, so the yardstick of float64 is the error of plain float32 times the ratio of the units.
_FLOAT64_OVER_FLOAT32 = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class Comparison:
    """One result of one case: ``error`` and ``plain_error`` are largest absolute errors against float64."""

    what: str
    error: float
    plain_error: float
    floor: float
    position: tuple[int, ...] = ()
    found: float = math.nan
    expected: float = math.nan

    @property
    def limit(self) -> float:
        """The largest error that passes."""
        return 2 * self.plain_error + self.floor

    @property
    def passed(self) -> bool:
        """False for a NaN too."""
        return self.error <= self.limit

    @property
    def ratio(self) -> float:
        """Error over limit; at most 1 passes."""
        return 0.0 if self.error == 0 else self.error / self.limit if self.limit else math.inf


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
        self._reads_keys_at_queries = _reads_keys_at_queries(
            self.operator.compilation.trace.program
        )

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

        def oracle(dtype: torch.dtype | None) -> OracleResult:
            return attncompiler.oracle.attention(
                self.variant, q, k, v, q_start=case.q_start, tensors=tensors, dtype=dtype
            )

        try:
            exact = oracle(torch.float64)
        except OutOfRangeError as fault:
            return Outcome(case, fault=fault)
        plain = oracle(torch.float32 if case.dtype == "float64" else None)
        out, stats = self.operator(q, k, v, q_start=case.q_start, return_stats=True, **tensors)
        comparisons = [_compare("out", out, plain.out, exact.out)]
        for name, expected in exact.stats.items():
            comparisons.append(_compare(f"stats.{name}", stats[name], plain.stats[name], expected))
        if self.with_gradients:
            comparisons += self.gradients(case)
        return Outcome(case, tuple(comparisons))

    def gradients(self, case: Case) -> tuple[Comparison, ...]:
        """One comparison for q, k, v and each floating tensor; see ``gradient_check.py``."""
        case = self.fitted(case)
        leaves, given = leaves_of(*self.inputs(case), case.dtype)
        found = gradients(self.variant, self.operator, leaves, given, case)
        # Gradients are sums of terms of both signs, often much larger than what is left (for one key nothing is).
        # So the floor counts in units of the largest gradient of the call, four of the usual ones for q, k and v; a
        # tensor's gradient is a sum over many pairs: eight, and in the element type of the call at least one.
        largest = max(_largest(exact) for _, _, exact in found.values())
        unit = torch.finfo(getattr(torch, case.dtype)).eps
        comparisons = []
        for name, (mine, plain, exact) in found.items():
            scale = 4 * largest
            if name not in ("q", "k", "v"):
                own = _FLOOR_UNITS[mine.dtype] * torch.finfo(mine.dtype).eps
                scale = largest * max(8.0, unit / own)
            comparisons.append(_compare(f"grad.{name}", mine, plain, exact, largest=scale))
        return tuple(comparisons)

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
        generator = torch.Generator().manual_seed(case.seed)
        dtype: torch.dtype = getattr(torch, case.dtype)
        # Queries twice as wide as usual: scores spread over several units, so that a wrong maximum shows.
        q = 2 * _draw(generator, case.B, case.H, case.M, case.D)
        k = _draw(generator, case.B, case.G, case.N, case.D)
        v = _draw(generator, case.B, case.G, case.N, case.Dv)
        tensors = self.variant.sample(case.sizes | {"q_start": case.q_start}, generator)
        if dtype == torch.float64 and hasattr(self.variant, "prepare"):
            # prepare is ordinary PyTorch: on float32 tensors its result would be no better than float32.
            tensors |= {n: t.double() for n, t in tensors.items() if t.dtype == torch.float32}
        return (
            _lay_out(q.to(dtype), case, shared=False),
            _lay_out(k.to(dtype), case, shared=True),
            _lay_out(v.to(dtype), case, shared=True),
            tensors,
        )

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


def _reads_keys_at_queries(program: Program) -> bool:
    """Whether some tensor over keys is indexed by a query position, as document ids are."""
    axes = {t.name: t.axes for t in program.tensors}
    return any(
        axis == "k" and "q" in axes_of(index)
        for node in walk(*(expr for _, expr in program.expressions()))
        if isinstance(node, Load)
        for axis, index in zip(axes[node.tensor], node.indices, strict=True)
    )


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _lay_out(x: Tensor, case: Case, *, shared: bool) -> Tensor:
    """The same numbers under other strides (broadcast: the first batch and head for all)."""
    match case.layout:
        case "plain":
            return x.contiguous()
        case "swapped":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        case "padded":
            room = x.new_full((*x.shape[:3], x.shape[3] + 5), math.nan)
            room[..., : x.shape[3]] = x
            return room[..., : x.shape[3]]
        case "broadcast":
            return x[:1, :1].expand(x.shape) if shared and x.numel() else x.contiguous()


def _compare(
    what: str, found: Tensor, plain: Tensor, exact: Tensor, *, largest: float = 0.0
) -> Comparison:
    """Largest errors; equal infinities and equal NaNs count as no error, any other pair with one as infinite.

    The floor is a few units of the largest exact number, or of ``largest`` if that is more.
    """
    if exact.numel() == 0:
        return Comparison(what, 0.0, 0.0, 0.0)
    if found.shape != exact.shape:
        raise AssertionError(f"{what} has shape {tuple(found.shape)}, not {tuple(exact.shape)}")
    errors = _errors(found, exact)
    plain_error = _largest_finite(_errors(plain, exact))
    if found.dtype == torch.float64 and plain.dtype == torch.float32:
        plain_error *= _FLOAT64_OVER_FLOAT32
    largest = max(largest, _largest(exact))
    units = _FLOOR_UNITS[found.dtype]
    place = int(errors.argmax())
    position = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), errors.shape))
    return Comparison(
        what,
        error=errors.max().item(),
        plain_error=plain_error,
        floor=units * torch.finfo(found.dtype).eps * largest,
        position=position,
        found=found[position].item(),
        expected=exact[position].item(),
    )


def _largest(exact: Tensor) -> float:
    finite = exact[exact.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def _errors(found: Tensor, exact: Tensor) -> Tensor:
    wide = found.to(torch.float64)
    same = (wide == exact) | (wide.isnan() & exact.isnan())
    difference = (wide - exact).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return torch.where(same, 0.0, difference)


def _largest_finite(errors: Tensor) -> float:
    # Where plain PyTorch overflows it is no yardstick; the kernel is then held to the rest of the result.
    return errors[errors.isfinite()].max().item() if errors.isfinite().any() else 0.0
