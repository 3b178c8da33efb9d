"""What the Triton backward template is filled with: plain data, every hole one printed expression or name."""

from __future__ import annotations

from dataclasses import dataclass

from attncompiler.backends.gpu_expr import Named
from attncompiler.backends.triton_context import ReductionText
from attncompiler.backends.triton_loops import RunsText, ScanText, TensorArgument


@dataclass(frozen=True, slots=True)
class GradientArgument:
    """A captured tensor that receives a gradient; ``read``: it is among the tensors of the formulas as well.

    ``stored``: each element receives one number, so that nothing is added up.
    """

    name: str
    rank: int
    read: bool
    stored: bool


@dataclass(frozen=True, slots=True)
class ScatterText:
    """``gradient[offset] += value`` at the points where ``where`` holds; ``rank`` axes of points."""

    name: str
    offset: str
    value: str
    where: str
    rank: int
    stored: bool


@dataclass(frozen=True, slots=True)
class FeatureText:
    """A formula over the value features."""

    rows: list[Named]
    reductions: list[ReductionText]
    value_grad: str
    elements: list[ScatterText]
    epilogue: list[ScatterText]
    reads_value: bool


@dataclass(frozen=True, slots=True)
class SumText:
    """A statistic that a walk finds."""

    name: str
    op: str
    identity: str
    body: str


@dataclass(frozen=True, slots=True)
class WalkText:
    """One walk: of a block of queries over the keys, or of a block of keys over the queries.

    ``rows`` are defined before a walk over keys, and in each tile of a walk over queries, where ``loads`` are those
    that another kernel left.
    """

    number: int
    stats: list[Named]
    rows: list[Named]
    loads: list[Named]
    keys: list[Named]
    uses_keys: bool
    masked: bool
    masks_score: bool
    needs_scores: bool
    needs_weight_grad: bool
    lets: list[Named]
    score: str | None
    mask_lets: list[Named]
    mask: str | None
    elements: list[Named]
    sums: list[SumText]
    weight: str | None
    dot_grad: str | None
    scatters: list[ScatterText]
    key_sums: list[ScatterText]
    passed: list[str]
    state: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class BackwardContext:
    """Everything the backward template needs.

    ``handed`` are the values of rows that the first kernel leaves for the second, ``known`` the statistics that there
    are before the first walk. ``own_go``: the gradient of the row before the output slot is not that of the output.
    ``finds_extrema``: gradients go to the pairs that attain an extremum of their row, so both kernels must compute
    scores in the same way.
    """

    title: str
    definition: list[str]
    regenerate: str
    params: list[tuple[str, str]]
    tensors: list[TensorArgument]
    grads: list[GradientArgument]
    saved: list[str]
    kept: list[tuple[str, str]]
    uniform: list[Named]
    start: FeatureText
    walks: list[WalkText]
    columns: WalkText
    finish: list[Named]
    row_grads: list[ScatterText]
    handed: list[Named]
    known: list[str]
    own_go: bool
    masked: bool
    scan: ScanText | None
    reversed: bool
    runs: RunsText | None
    column_runs: RunsText | None
    finds_extrema: bool
    dot_scale: float
