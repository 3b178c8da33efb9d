"""Kernel: a streaming plan arranged as loops, with every value at the outermost loop where it can be computed.

The loop nest that all backends print, for one batch b and key/value head g::

    for each block of rows (several query heads and queries):
        uniform values
        for each pass:
            row values                               once a row
            for each key tile that may hold an allowed pair:
                key values                           once a key
                scores = rows x keys                 a matrix product
                for each sweep over the tile's elements:
                    lane values                      once a row, may read running statistics
                    statistics, weights              once an element
                accumulators += weights x values     matrix products
        finish: coefficients, epilogue, kept statistics

In a kernel a ``Load`` has one index: the offset in elements, already clamped into the tensor. ``Stat`` inside a
sweep is the running value (read as 0 while it still holds its identity), elsewhere the final one.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncompiler.ir.expr import Expr, Local
from attncompiler.ir.program import ParamDecl, ReduceOp, Reduction, TensorDecl
from attncompiler.ir.spans import Span
from attncompiler.ir.streaming import StreamingPlan


@dataclass(frozen=True, slots=True)
class Let:
    """``local = expr``."""

    local: Local
    expr: Expr


@dataclass(frozen=True, slots=True)
class StatUpdate:
    """Fold the tile's elements into a running statistic; the old value is first multiplied by ``factor``."""

    name: str
    op: ReduceOp
    body: Expr
    factor: Expr | None


@dataclass(frozen=True, slots=True)
class WeightTile:
    """The weights of one accumulator over the tile; the accumulator is first multiplied by ``factor``."""

    accumulator: str
    body: Expr
    factor: Expr | None


@dataclass(frozen=True, slots=True)
class Sweep:
    """One walk over the elements of a score tile."""

    lanes: tuple[Let, ...]
    stats: tuple[StatUpdate, ...]
    weights: tuple[WeightTile, ...]

    @property
    def parts(self) -> tuple[StatUpdate | WeightTile, ...]:
        """The statistics, then the weights."""
        return (*self.stats, *self.weights)


@dataclass(frozen=True, slots=True)
class KernelPass:
    """One walk over the keys. ``mask`` is None when every pair is allowed.

    ``nonpositive`` holds the exponentials whose argument is provably never positive for an allowed key.
    """

    rows: tuple[Let, ...]
    keys: tuple[Let, ...]
    score: Expr
    mask: Expr | None
    sweeps: tuple[Sweep, ...]
    nonpositive: frozenset[Expr] = frozenset()

    @property
    def weights(self) -> tuple[WeightTile, ...]:
        """The weight tiles of all sweeps."""
        return tuple(w for sweep in self.sweeps for w in sweep.weights)


@dataclass(frozen=True, slots=True)
class Finish:
    """What happens to a row after the last pass, in this order.

    ``rows`` (values a row), ``coefficients`` (one an accumulator), ``kept`` statistics, then over the value
    features: each reduction (its ``rows`` may be read by later formulas) and the output element.
    """

    rows: tuple[Let, ...]
    coefficients: tuple[tuple[str, Expr], ...]
    kept: tuple[tuple[str, Expr], ...]
    reductions: tuple[Reduction, ...]
    output: Expr


@dataclass(frozen=True, slots=True)
class KeyRanges:
    """The keys that the queries q_lo..q_hi of a block may see: the union of ``spans``, as long as ``small`` holds.

    A kernel visits the tiles that a solid span meets, and searches the tiles of others by ``possible``.
    """

    spans: tuple[Span, ...]
    small: Expr

    def formulas(self) -> tuple[Expr, ...]:
        """Everything that is computed once a block."""
        return (self.small, *(e for s in self.spans for e in s.formulas()))


@dataclass(frozen=True, slots=True)
class Kernel:
    """A plan arranged as loops; see the module's text.

    ``possible`` and ``certain`` classify a tile from its corners (``ir/tiles.py``); with ``planned`` a call may bring
    the states of tiles besides (``ir/tile_plan.py``). ``ranges`` say which keys a block of rows may see, where that
    is known without a search. ``packs_heads`` says that
    no value inside the key loop depends on the query head except through a row value, so rows of several
    heads may share a block. ``params`` and ``tensors`` are those the kernel reads, in the program's order.
    """

    plan: StreamingPlan
    uniform: tuple[Let, ...]
    passes: tuple[KernelPass, ...]
    finish: Finish
    possible: Expr
    certain: Expr
    planned: bool
    ranges: KeyRanges | None
    packs_heads: bool
    params: tuple[ParamDecl, ...]
    tensors: tuple[TensorDecl, ...]


def stride(tensor: str, axis: int) -> str:
    """Name of the run-time parameter that holds a captured tensor's stride, in elements."""
    return f"{tensor}.stride{axis}"


def extent(tensor: str, axis: int) -> str:
    """Name of the run-time parameter that holds a captured tensor's extent."""
    return f"{tensor}.extent{axis}"
