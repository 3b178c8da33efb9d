"""What the Triton printer of a backward asks about it: who writes what, and what a masked score leaves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from attncompiler.backends.gpu_expr import ExprPrinter, Named
from attncompiler.backends.triton_backward_context import ScatterText
from attncompiler.ir.backward import Backward, BackwardPass
from attncompiler.ir.expr import Expr, Index
from attncompiler.ir.passes.lower import ROW
from attncompiler.ir.passes.row_exponents import fold_row_factors
from attncompiler.ir.signs import nonnegative_stats
from attncompiler.ir.vanishing import IDENTITY_LIMITS, at_minus_infinity


@dataclass(frozen=True, slots=True)
class Elements:
    """What the elements of a walk are computed from, printed; ``codes`` are all these texts.

    ``dots`` and ``weight_grads``: whether they read the products of a tile.
    """

    printer: ExprPrinter
    lets: list[Named]
    mask_lets: list[Named]
    mask: str | None
    score: str | None
    elements: list[Named]
    codes: list[str]
    dots: bool
    weight_grads: bool


def folded(backward: Backward) -> Backward:
    """The backward with the factors of its rows in its exponents."""
    positive = nonnegative_stats(backward.gradient.program.reductions)
    passes = tuple(fold_row_factors(p, positive) for p in backward.passes)
    return replace(backward, passes=passes)


def vanishes(walk_: BackwardPass, *, weighs: bool) -> bool:
    """Whether nothing is left of a pair whose score is minus infinity; ``weighs``: in a walk over queries."""
    terms: list[tuple[Expr, str]] = []
    if weighs:
        terms += [(s.value, "sum") for s in walk_.key_grads]
        terms += [(walk_.weight, "sum")] if walk_.weight is not None else []
    else:
        terms += [(u.body, u.op) for u in walk_.sums]
    terms += [(walk_.dot_grad, "sum")] if walk_.dot_grad is not None else []
    return all(at_minus_infinity(body) == IDENTITY_LIMITS[op] for body, op in terms)


def arguments_of(scatters: Iterable[ScatterText]) -> list[str]:
    """The arguments by which scatters reach their gradients."""
    return [f"{s.name}_stored {s.name}_fixed {s.name}_largest {s.name}_factors" for s in scatters]


def is_stored(backward: Backward, tensor: str) -> bool:
    """Whether each element of a tensor's gradient receives one number: all positions index axes of their own."""
    found = [t for t in backward.gradient.tensors if t.tensor == tensor]
    if len(found) != 1:
        return False
    (only,) = found
    loops: dict[str, tuple[Expr, ...]] = {
        "element": (Index("b"), Index("h"), ROW, Index("d")),
        "epilogue": (Index("b"), Index("h"), ROW),
        "row": (Index("b"), Index("h"), ROW),
        "pair": (Index("b"), Index("h"), ROW, Index("k")),
        "key": (Index("b"), Index("h"), Index("k")),
    }
    declared = {t.name: t.axes for t in backward.grads}[tensor]
    names = {Index("b"): "b", Index("h"): "h", ROW: "q", Index("k"): "k", Index("d"): "d"}
    own = [i for i, axis in zip(only.indices, declared, strict=True) if names.get(i) == axis]
    return all(i in own for i in loops[only.level])
