"""What the Triton templates are filled with: plain data, every hole one printed expression or name."""

from __future__ import annotations

from dataclasses import dataclass

from attncompiler.backends.gpu_expr import Named
from attncompiler.backends.triton_loops import RunsText, ScanText, TensorArgument

IDENTITIES = {"sum": "0.0", "max": 'float("-inf")', "min": 'float("inf")'}
FOLDS = {"sum": "tl.sum", "max": "tl.max", "min": "tl.min"}


@dataclass(frozen=True, slots=True)
class StatText:
    """One running statistic.

    ``raw`` says that it is the extreme of the dot products themselves, which are scaled after it is found.
    """

    name: str
    op: str
    identity: str
    body: str
    factor: str | None
    raw: bool


@dataclass(frozen=True, slots=True)
class WeightText:
    """The weights of one accumulator; ``bounded``: none is larger than 1, so that 16 bits hold them."""

    name: str
    body: str
    factor: str | None
    bounded: bool


@dataclass(frozen=True, slots=True)
class SweepText:
    """One look at the elements of a tile."""

    lanes: list[Named]
    elements: list[Named]
    stats: list[StatText]
    factors: list[Named]
    weights: list[WeightText]


@dataclass(frozen=True, slots=True)
class PassText:
    """One walk over the keys.

    ``masks_score``: the score of a masked pair becomes minus infinity, and then nothing else needs the mask.
    ``passed`` are the values of a block that the walk reads, ``state`` those it changes, each with how it begins.
    """

    number: int
    rows: list[Named]
    keys: list[Named]
    uses_keys: bool
    needs_scores: bool
    score_lets: list[Named]
    score: str | None
    mask_lets: list[Named]
    mask: str | None
    masks_score: bool
    sweeps: list[SweepText]
    passed: list[str]
    state: list[tuple[str, str]]

    @property
    def weighs(self) -> bool:
        """Whether the walk multiplies weights by values."""
        return any(s.weights for s in self.sweeps)


@dataclass(frozen=True, slots=True)
class ReductionText:
    """A statistic over the value features of a row."""

    name: str
    op: str
    identity: str
    body: str


@dataclass(frozen=True, slots=True)
class FinishText:
    """The end of a block of rows."""

    rows: list[Named]
    coefficients: list[tuple[str, str]]
    kept: list[str]
    reductions: list[ReductionText]
    output: str


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """Everything the forward template needs."""

    title: str
    definition: list[str]
    regenerate: str
    params: list[tuple[str, str]]
    tensors: list[TensorArgument]
    uniform: list[Named]
    passes: list[PassText]
    finish: FinishText
    stats: list[str]
    masked: bool
    scan: ScanText | None
    reversed: bool
    runs: RunsText | None
