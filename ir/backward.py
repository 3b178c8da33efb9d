"""Backward: a Gradient arranged as loops, the counterpart of ``ir/kernel.py``.

The loop nest, for one batch b and key/value head g::

    for each block of rows (several query heads and queries):
        uniform values
        start:  saved statistics and gradients of kept statistics are read; values a row; reductions over d;
                go_d for every d; tensor gradients of the epilogue
        for each pass:
            row statistics, row values               once a row
            for each key tile that may hold an allowed pair:
                key values                           once a key
                scores = rows x keys                 a matrix product, where the pass reads Dot or Score
                dw     = go x values                 a matrix product, where the pass reads WeightGrad
                sums, and in the last pass weight and dot_grad, tensor gradients: once an element
                last pass: dv += weight^T x go;  dk += dot_grad^T x queries;  dq += dot_grad x keys
        finish: dq; tensor gradients a row

As in a kernel, a ``Load`` has one index, the clamped offset in elements. The offset of a tensor gradient counts in
the strides of its gradient buffer, which are run-time parameters of their own (``step``).
"""

from __future__ import annotations

from dataclasses import dataclass

from attncompiler.ir.expr import Expr
from attncompiler.ir.gradient import Gradient
from attncompiler.ir.kernel import KeyRanges, Let, StatUpdate
from attncompiler.ir.program import ParamDecl, Reduction, TensorDecl


@dataclass(frozen=True, slots=True)
class Scatter:
    """``gradient of tensor [offset] += value`` for every point of the loop it stands in."""

    tensor: str
    offset: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class Start:
    """The work on the value features of a row.

    ``rows``: values a row, known before any reduction. Then each reduction over d in order, then ``value_grad`` for
    each d; ``elements`` add at every (row, d), ``epilogue`` at every row, both also for rows without a key.
    """

    rows: tuple[Let, ...]
    reductions: tuple[Reduction, ...]
    value_grad: Expr
    elements: tuple[Scatter, ...]
    epilogue: tuple[Scatter, ...]


@dataclass(frozen=True, slots=True)
class BackwardPass:
    """One walk over the keys.

    ``stats``: row statistics computed in order before ``rows``, readable by them and by everything later. Updates
    have no factor. ``weight`` and ``dot_grad`` are None except in the last pass. ``keys_grads``: the value is summed
    over the rows of a block and added once a key; ``pair_grads`` add at every allowed pair. ``nonpositive`` as in a
    kernel's pass.
    """

    stats: tuple[tuple[str, Expr], ...]
    rows: tuple[Let, ...]
    keys: tuple[Let, ...]
    score: Expr
    mask: Expr | None
    sums: tuple[StatUpdate, ...]
    weight: Expr | None
    dot_grad: Expr | None
    key_grads: tuple[Scatter, ...]
    pair_grads: tuple[Scatter, ...]
    nonpositive: frozenset[Expr] = frozenset()


@dataclass(frozen=True, slots=True)
class Backward:
    """A gradient arranged as loops; see the module's text.

    ``row_grads`` add once a row that met an allowed key, after the last pass, with the values ``finish``. ``grads``
    are the tensors that receive gradients; ``saved`` the statistics read from the forward; the rest as in
    ``Kernel``.
    """

    gradient: Gradient
    uniform: tuple[Let, ...]
    start: Start
    passes: tuple[BackwardPass, ...]
    finish: tuple[Let, ...]
    row_grads: tuple[Scatter, ...]
    possible: Expr
    certain: Expr
    planned: bool
    ranges: KeyRanges | None
    packs_heads: bool
    params: tuple[ParamDecl, ...]
    tensors: tuple[TensorDecl, ...]
    grads: tuple[TensorDecl, ...]


def step(tensor: str, axis: int) -> str:
    """Name of the run-time parameter that holds the stride of a gradient buffer, in elements."""
    return f"{tensor}.step{axis}"
