"""The whole pipeline: turns a variant into an operator.

Read it top to bottom. ``PASSES`` rewrite the Program the front end traced; ``derive`` finds how it streams over the
keys; ``lower`` arranges that as loops; a backend prints the loops. Every level verifies itself and prints as text
(``Operator.explain``). A new pass is a function Program -> Program in ``ir/passes`` and a line in ``PASSES``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, overload

from attncompiler.errors import InternalError
from attncompiler.frontend import Trace, trace
from attncompiler.ir.kernel import Kernel
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.passes.derive import derive
from attncompiler.ir.passes.exp2 import use_exp2
from attncompiler.ir.passes.lower import lower
from attncompiler.ir.passes.merge_reductions import merge_reductions
from attncompiler.ir.passes.stabilize import stabilize
from attncompiler.ir.printer import print_program
from attncompiler.ir.program import Program
from attncompiler.ir.streaming import StreamingPlan
from attncompiler.ir.verify import VerifyError, verify_plan, verify_program
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
BACKENDS = ("cpp", "dense")

__all__ = ["PASSES", "BuiltKernel", "Compilation", "Operator", "compile", "compile_levels"]


@dataclass(frozen=True, slots=True)
class Compilation:
    """Every level of one variant: what ``explain`` shows.

    ``steps`` holds the program after the front end and after each pass, by name.
    """

    trace: Trace
    steps: tuple[tuple[str, Program], ...]
    plan: StreamingPlan
    kernel: Kernel


@overload
def compile(
    variant: Variant | type[Variant], backend: Literal["auto", "cpp"] = "auto"
) -> Operator: ...
@overload
def compile(variant: Variant | type[Variant], backend: Literal["dense"]) -> DenseOperator: ...
@overload
def compile(variant: Variant | type[Variant], backend: str) -> Operator | DenseOperator: ...
def compile(variant: Variant | type[Variant], backend: str = "auto") -> Operator | DenseOperator:
    """The operator of a variant: ``op(q, k, v, **tensors) -> out``.

    ``variant`` is a Variant or its class. ``backend`` is ``"cpp"``, or ``"auto"`` for the best one here; ``"dense"``
    is the oracle, slow and only for comparing. Kernels are built when a call first needs them (or by ``op.build``)
    and kept in the user's cache. Raises a subclass of AttnCompilerError that names the user's line.
    """
    if backend not in ("auto", *BACKENDS):
        raise BackendError(name=backend, known=", ".join(("auto", *BACKENDS)))
    instance = variant() if inspect.isclass(variant) else variant
    if not isinstance(instance, Variant):
        raise VariantTypeError(found=repr(variant))
    return (
        DenseOperator(instance) if backend == "dense" else Operator(compile_levels(trace(instance)))
    )


def compile_levels(traced: Trace) -> Compilation:
    """Run the pipeline on a traced variant."""
    program = traced.program
    verify_program(program)
    steps = [("trace", program)]
    for name, run in PASSES:
        program = run(program)
        try:
            verify_program(program)
        except VerifyError as error:
            raise InternalError(name, str(error), print_program(program)) from error
        steps.append((name, program))
    plan = derive(program)
    try:
        verify_plan(plan)
    except VerifyError as error:
        raise InternalError("derive", str(error), print_program(program)) from error
    kernel = lower(plan)
    try:
        verify_kernel(kernel)
    except VerifyError as error:
        raise InternalError("lower", str(error), print_program(program)) from error
    return Compilation(traced, tuple(steps), plan, kernel)
