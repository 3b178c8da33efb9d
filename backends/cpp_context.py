"""What the C++ templates are filled with: plain data, every hole one printed expression or name."""

from __future__ import annotations

from dataclasses import dataclass

from attncompiler.backends.cpp_cut import Schedule
from attncompiler.backends.cpp_expr import Definition

REAL_BYTES = {"float32": 4, "bfloat16": 4, "float16": 4, "float64": 8}
CPP_TYPES = {
    "float32": "float",
    "float64": "double",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "int64": "int64_t",
    "int32": "int32_t",
    "int16": "int16_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "bool": "bool8",
}
# How many bfloat16 numbers add up to an element, where a matrix unit multiplies those; 0: it has no use for one.
PIECES = {"float32": 3, "bfloat16": 1, "float16": 2, "float64": 0}
# The products of pieces that count, in an order in which neighbours share a factor.
PRODUCTS = {
    0: [],
    1: [(0, 0)],
    2: [(1, 0), (0, 0), (0, 1)],
    3: [(2, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0, 2)],
}
IDENTITIES = {"max": "-infinity", "min": "infinity", "sum": "real(0)"}


@dataclass(frozen=True, slots=True)
class Specialization:
    """What one C++ file fixes: element types and head dimensions; everything else is a run-time argument.

    ``tensors`` gives the dtype of every captured tensor the kernel reads, in the kernel's order.
    """

    dtype: str
    head_dim: int
    value_dim: int
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StatText:
    """One running statistic of a sweep, ready for the template."""

    name: str
    op: str
    identity: str
    combine: str
    body: str
    factor: str | None


@dataclass(frozen=True, slots=True)
class WeightText:
    """The weight tile of one accumulator."""

    name: str
    slot: int
    body: str
    factor: str | None


@dataclass(frozen=True, slots=True)
class SweepText:
    """One sweep: values a row, definitions a row, definitions an element, results."""

    first: bool
    last: bool
    values: list[Definition]
    lanes: list[Definition]
    uses_dot: bool
    score_lets: list[Definition]
    mask_lets: list[Definition]
    mask: str | None
    score: str | None
    stores_score: bool
    elements: list[Definition]
    factors: list[Definition]
    stats: list[StatText]
    weights: list[WeightText]


@dataclass(frozen=True, slots=True)
class PassText:
    """One pass over the keys."""

    number: int
    rows: list[Definition]
    keys: list[Definition]
    final_stats: list[str]
    masked: bool
    needs_scores: bool
    sweeps: list[SweepText]
    stats: list[tuple[str, str]]
    accumulators: list[str]


@dataclass(frozen=True, slots=True)
class FinishText:
    """The end of a row."""

    rows: list[Definition]
    coefficients: list[tuple[str, str]]
    kept: list[tuple[str, str]]
    reductions: list[tuple[str, str, str, str, str]]
    output: str


@dataclass(frozen=True, slots=True)
class TensorText:
    """A captured tensor in the argument block."""

    name: str
    type: str
    rank: int


@dataclass(frozen=True, slots=True)
class SpanText:
    """A range of keys that a box may see; ``holes`` says whether tiles between may hold none of them."""

    when: str
    lo: str
    end: str
    holes: str


@dataclass(frozen=True, slots=True)
class RangesText:
    """The ranges of keys of a box, known while ``small`` holds."""

    small: str
    spans: list[SpanText]

    @property
    def have_holes(self) -> bool:
        """Whether tiles in some range may hold no key of it, and are found by their conditions."""
        return any(s.holes != "false" for s in self.spans)


@dataclass(frozen=True, slots=True)
class Context:
    """Everything the template needs."""

    title: str
    definition: list[str]
    regenerate: str
    spec: Specialization
    storage: str
    types: frozenset[str]
    real: str
    params: list[tuple[str, str]]
    tensors: list[TensorText]
    uniform: list[Definition]
    row_arrays: list[Definition]
    key_arrays: list[Definition]
    stats: list[str]
    accumulators: list[str]
    passes: list[PassText]
    finish: FinishText
    kept: list[str]
    possible: str
    certain: str
    planned: bool
    ranges: RangesText | None
    packs_heads: bool
    masked: bool
    schedules: list[tuple[str, Schedule]]
    tiles: int
    in_place: bool
    pairs: bool
    scale_late: bool
    pieces: int
    products: list[tuple[int, int]]
