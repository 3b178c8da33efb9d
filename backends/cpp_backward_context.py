"""What the backward template is filled with: plain data, every hole one printed expression or name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attncompiler.backends.cpp_context import RangesText, Specialization, StatText, TensorText
from attncompiler.backends.cpp_cut import Schedule
from attncompiler.backends.cpp_expr import Definition


@dataclass(frozen=True, slots=True)
class GradText:
    """A captured tensor that receives a gradient, summed in ``type``.

    ``read`` says that the argument block holds the tensor as well.
    """

    name: str
    type: str
    rank: int
    read: bool


@dataclass(frozen=True, slots=True)
class ScatterText:
    """``gradient[offset] += value``."""

    name: str
    offset: str
    value: str


@dataclass(frozen=True, slots=True)
class TileScatterText:
    """``gradient[row offset + key offset] += value`` for every pair of a tile, by rows once the tile is known."""

    name: str
    row_offset: str
    key_offset: str
    value: str


@dataclass(frozen=True, slots=True)
class FeatureText:
    """A formula over the value features and what it reads of them; a reduction has an operator as well.

    ``go`` is set for the sum of ``go * value``, which is added up exactly as the product of go and one value row is.
    """

    name: str
    op: str
    identity: str
    combine: str
    body: str
    reads_grad: bool
    reads_value: bool
    go: str | None = None


@dataclass(frozen=True, slots=True)
class StartText:
    """What happens to a row before the keys are walked."""

    rows: list[Definition]
    reductions: list[FeatureText]
    value_grad: FeatureText
    elements: list[ScatterText]
    epilogue: list[ScatterText]


@dataclass(frozen=True, slots=True)
class ScanText:
    """The mask alone."""

    values: list[Definition]
    lets: list[Definition]
    mask: str


@dataclass(frozen=True, slots=True)
class BackwardPassText:
    """One walk over the keys; ``known`` names the statistics its row values read."""

    number: int
    last: bool
    known: list[str]
    stats: list[tuple[str, str]]
    rows: list[Definition]
    keys: list[Definition]
    masked: bool
    needs_dot: bool
    needs_weight_grad: bool
    values: list[Definition]
    score_lets: list[Definition]
    mask: str | None
    score: str | None
    elements: list[Definition]
    sums: list[StatText]
    weight: str | None
    dot_grad: str | None
    key_grads: list[ScatterText]
    pair_grads: list[ScatterText]
    tile_grads: list[TileScatterText]


@dataclass(frozen=True, slots=True)
class BackwardContext:
    """Everything the template needs.

    ``value`` says where the output row before the epilogue comes from: ``out`` in the element type, ``real`` in the
    kernel's real type, or nothing when it is not read. ``weighed`` names the statistic <go, o>, where one walk over
    the keys can also give it as the sum of each weight times its gradient.
    """

    title: str
    definition: list[str]
    regenerate: str
    spec: Specialization
    storage: str
    types: frozenset[str]
    real: str
    params: list[tuple[str, str]]
    tensors: list[TensorText]
    grads: list[GradText]
    saved: list[str]
    kept: list[str]
    kept_stats: list[tuple[str, str]]
    value: Literal["out", "real", ""]
    uniform: list[Definition]
    row_arrays: list[Definition]
    key_arrays: list[Definition]
    stats: list[str]
    weighed: str | None
    start: StartText
    scan: ScanText | None
    passes: list[BackwardPassText]
    finish_stats: list[str]
    finish_rows: list[Definition]
    row_grads: list[ScatterText]
    key_grads: list[GradText]
    tile_grads: list[GradText]
    pair_grads: bool
    live: bool
    possible: str
    certain: str
    planned: bool
    ranges: RangesText | None
    packs_heads: bool
    masked: bool
    schedules: list[tuple[str, Schedule]]
    in_place: bool
    pairs: bool
    scale_late: bool
    dot_scale: float
    pieces: int
    products: list[tuple[int, int]]
