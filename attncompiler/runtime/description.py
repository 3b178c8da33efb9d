"""Turns kernels, as the compiler knows them, into the plain signatures that launches work from."""

from __future__ import annotations

from attncompiler.backends.cpp_backward_printer import sums_in_double
from attncompiler.ir.backward import Backward
from attncompiler.ir.expr import Index
from attncompiler.ir.kernel import Kernel
from attncompiler.ir.passes.lower import ROW
from attncompiler.ir.tile_plan import TilePlan
from attncompiler.runtime.signature import (
    BackwardSignature,
    PlanSignature,
    Separation,
    Signature,
    TensorGrad,
)


def forward_signature(kernel: Kernel) -> Signature:
    """The argument block of a forward."""
    return Signature(
        params=kernel.params,
        tensors=kernel.tensors,
        kept=tuple(name for name, _ in kernel.finish.kept),
        stats=tuple(stat.name for stat in kernel.plan.stats),
        planned=kernel.planned,
    )


def backward_signature(backward: Backward) -> BackwardSignature:
    """The argument block of a backward."""
    read = {t.name for t in backward.tensors}
    return BackwardSignature(
        params=backward.params,
        tensors=backward.tensors,
        saved=backward.gradient.saved,
        kept=tuple(name for name, _ in backward.gradient.kept),
        grads=tuple(
            TensorGrad(
                t.name,
                len(t.axes),
                t.name not in read,
                separation(backward, t.name),
                sums_in_double(t),
            )
            for t in backward.grads
        ),
        reads_value=backward.gradient.reads_value,
        planned=backward.planned,
    )


def plan_signature(plan: TilePlan) -> PlanSignature:
    """What a planning kernel reads."""
    return PlanSignature(plan.params, plan.tensors, plan.by_batch, plan.by_head)


def separation(backward: Backward, tensor: str) -> Separation:
    """What the indices of all reads of a tensor that pass on a gradient say about its elements."""
    declared = {t.name: t.axes for t in backward.grads}[tensor]
    found = [t.indices for t in backward.gradient.tensors if t.tensor == tensor]

    def separated(*wanted: tuple[str, object]) -> bool:
        """Whether one axis, declared so, is indexed by the position itself in all reads."""
        return any(
            declared[axis] == name and all(indices[axis] is index for indices in found)
            for name, index in wanted
            for axis in range(len(declared))
        )

    by_head = separated(("h", Index("h")))
    by_query = separated(("q", ROW))
    return Separation(
        batches=separated(("b", Index("b"))),
        groups=by_head or separated(("g", Index("g"))),
        rows_of_head=by_query,
        rows=by_query and by_head,
    )
