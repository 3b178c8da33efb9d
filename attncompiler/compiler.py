"""The whole pipeline: turns a variant into an operator.

Read it top to bottom. ``PASSES`` rewrite the Program the front end traced; ``derive`` finds how it streams over the
keys; ``lower`` arranges that as loops; a backend prints the loops. When a call needs gradients, ``differentiate``
derives the backward of the plan and ``lower_gradient`` its loops. Every level verifies itself and prints as text
(``Operator.explain``). A new pass is a function Program -> Program in ``ir/passes`` and a line in ``PASSES``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar, overload

import torch

from attncompiler.declarations import Tensor
from attncompiler.errors import ArgumentsError, InternalError
from attncompiler.frontend import Trace, trace
from attncompiler.ir.backward import Backward
from attncompiler.ir.gradient import Gradient
from attncompiler.ir.kernel import Kernel
from attncompiler.ir.passes.arrange import arrange
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.passes.derive import derive
from attncompiler.ir.passes.differentiate import differentiate
from attncompiler.ir.passes.exp2 import use_exp2
from attncompiler.ir.passes.lower import lower
from attncompiler.ir.passes.lower_gradient import lower_gradient
from attncompiler.ir.passes.merge_reductions import merge_reductions
from attncompiler.ir.passes.stabilize import stabilize
from attncompiler.ir.program import Program
from attncompiler.ir.streaming import StreamingPlan
from attncompiler.ir.tile_plan import TilePlan, plan_tiles
from attncompiler.ir.verify import VerifyError, verify_plan, verify_program
from attncompiler.ir.verify_gradient import verify_gradient
from attncompiler.ir.verify_kernel import verify_kernel
from attncompiler.runtime.dense import DenseOperator
from attncompiler.runtime.errors import BackendError, VariantTypeError
from attncompiler.runtime.operator import BuiltKernel, Operator
from attncompiler.variant import Variant

PASSES: tuple[tuple[str, Callable[[Program], Program]], ...] = (
    ("canonicalize", canonicalize),
    ("merge_reductions", merge_reductions),
    ("stabilize", stabilize),
    ("use_exp2", use_exp2),
)
BACKENDS = ("cpp", "triton", "tilelang", "dense")

T = TypeVar("T")

__all__ = ["PASSES", "BuiltKernel", "Compilation", "Operator", "compile", "compile_levels"]


@dataclass(frozen=True)
class Compilation:
    """Every level of one variant: what ``explain`` shows.

    ``steps`` holds the program after the front end and after each pass, by name.
    """

    trace: Trace
    steps: tuple[tuple[str, Program], ...]
    plan: StreamingPlan
    kernel: Kernel

    @cached_property
    def gradient(self) -> Gradient:
        """The derived backward; worked out when a call, or ``explain``, first asks for it."""
        return _verified("differentiate", differentiate(self.plan), verify_gradient)

    @cached_property
    def tile_plan(self) -> TilePlan:
        """How a planning kernel classifies the tiles of the mask."""
        return plan_tiles(self.plan.program)

    def backward(self, wanted: frozenset[str]) -> Backward:
        """The loops of the backward that gives gradients to q, k, v and to the tensors in ``wanted``."""
        return lower_gradient(self.gradient, wanted)


@overload
def compile(
    variant: Variant | type[Variant],
    backend: Literal["auto", "cpp", "triton", "tilelang"] = "auto",
    *,
    deterministic: bool = True,
    tune: bool | float = False,
) -> Operator: ...
@overload
def compile(variant: Variant | type[Variant], backend: Literal["dense"]) -> DenseOperator: ...
@overload
def compile(
    variant: Variant | type[Variant],
    backend: str,
    *,
    deterministic: bool = True,
    tune: bool | float = False,
) -> Operator | DenseOperator: ...
def compile(
    variant: Variant | type[Variant],
    backend: str = "auto",
    *,
    deterministic: bool = True,
    tune: bool | float = False,
) -> Operator | DenseOperator:
    """The operator of a variant: ``op(q, k, v, **tensors) -> out``.

    ``variant`` is a Variant or its class. ``backend`` is ``"cpp"`` (tensors on the CPU), ``"triton"`` or ``"tilelang"``
    (on CUDA devices), or ``"auto"``: each call runs where its tensors are. ``"dense"`` is the oracle, slow and only for
    comparing. Equal calls give equal bits; ``deterministic=False`` lets gradients of tensors that many programs of a
    GPU add to differ in their last bits, which saves a run of the backward kernels. Kernels are built when a call first
    needs them (or by ``op.build``) and kept in the user's cache. With ``tune`` the first call of each class of sizes
    looks for the fastest schedule before it runs, for 30 seconds a kernel or as many as given; what it finds is kept,
    and taken by every later operator of the same formula without being asked. Raises a subclass of AttnCompilerError
    that names the user's line.
    """
    if backend not in ("auto", *BACKENDS):
        raise BackendError(name=backend, known=", ".join(("auto", *BACKENDS)))
    if inspect.isclass(variant) and not issubclass(variant, Variant):
        raise VariantTypeError(found=repr(variant))
    instance = variant() if inspect.isclass(variant) else variant
    if not isinstance(instance, Variant):
        raise VariantTypeError(found=repr(variant))
    if backend == "dense":
        return DenseOperator(instance)
    levels = compile_levels(trace(instance))
    return Operator(levels, backend, deterministic=deterministic, tune=_seconds(tune))


def _seconds(tune: bool | float) -> float | None:
    """The budget of a search; None for no search."""
    if isinstance(tune, bool):
        return 30.0 if tune else None
    if not isinstance(tune, int | float) or not 0 < tune < float("inf"):
        raise ArgumentsError(
            name="compile",
            detail=f"tune is {tune!r}",
            fix="give True, False, or the seconds that a search may take",
        )
    return float(tune)


def compile_levels(traced: Trace) -> Compilation:
    """Run the pipeline on a traced variant."""
    program = traced.program
    verify_program(program)
    steps = [("trace", program)]
    if traced.variant.layout is not None and not traced.orders:
        traced = arranged(traced)
        program = traced.program
        verify_program(program)
        steps.append(("arrange", program))
    for name, run in PASSES:
        program = _verified(name, run(program), verify_program)
        steps.append((name, program))
    plan = _verified("derive", derive(program), verify_plan)
    kernel = _verified("lower", lower(plan), verify_kernel)
    return Compilation(traced, tuple(steps), plan, kernel)


def arranged(traced: Trace) -> Trace:
    """The trace with positions renamed for the variant's layout; the operator gives it the order of tokens."""
    taken = set(traced.tensors) | set(traced.params)
    names = tuple(
        next(n for n in (f"order_{axis}{'_' * i}" for i in range(len(taken) + 1)) if n not in taken)
        for axis in "qk"
    )
    declared = {n: Tensor(axis, dtype=torch.int32) for n, axis in zip(names, "qk", strict=True)}
    return replace(
        traced,
        program=arrange(traced.program, *names),
        tensors=traced.tensors | declared,
        orders=names,
    )


def _verified(name: str, level: T, verify: Callable[[T], None]) -> T:
    try:
        verify(level)
    except VerifyError as error:
        raise InternalError(name, str(error)) from error
    return level
