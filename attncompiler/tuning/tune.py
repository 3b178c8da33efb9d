"""Tunes an operator's kernels on one call: what ``Operator.tune`` and ``attncompiler tune`` do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attncompiler.errors import ArgumentsError
from attncompiler.runtime.gpu_choice import GpuChoice
from attncompiler.tuning.tuned import Tuned
from attncompiler.tuning.tuner import Step

if TYPE_CHECKING:
    from attncompiler.runtime.operator import Operator

Hear = Callable[[str, Step[Any]], None]


def tune_operator(
    operator: Operator,
    tokens: tuple[Tensor, Tensor, Tensor],
    arguments: dict[str, Any],
    *,
    backward: bool,
    seconds: float,
    again: bool,
    progress: Hear | None,
) -> list[Tuned]:
    """What was found for the kernels of a call, one after the other; see ``Operator.tune``."""
    if not seconds > 0:
        raise ArgumentsError(
            name="tune", detail=f"seconds is {seconds!r}", fix="give a positive number"
        )
    if arguments.get("sparsity") is not None:
        raise ArgumentsError(
            name="tune",
            detail="calls with sparsity= run kernels of their own",
            fix="leave sparsity away, or compile with tune=True, which tunes those too",
        )
    # One of its own: of operators of the same program the newest runs calls with gradients.
    engines = operator._engines
    made = type(operator)(
        operator.compilation,
        engines.backend,
        deterministic=engines.deterministic,
        tune=seconds,
    )
    engine: Any = made._engines.of(tokens[0])  # a Launcher, a TritonEngine or a GpuChoice
    found: list[Tuned] = []
    for tuner in _tuners(engine):
        tuner.again, tuner.found = again, found
        if progress is not None:
            tuner.hear = progress
    _run(made, tokens, arguments, backward=backward)
    operator._kernels.forget_choices()
    before: Any = engines.of(tokens[0])
    before.forget()
    return found


def _tuners(engine: Any) -> list[Any]:
    """What decides for an engine that was made to tune: its tuner, or those of all it chooses of and its judge."""
    if isinstance(engine, GpuChoice):
        return [engine.judge, *(one.tuner for one in engine.engines.values())]
    return [engine.tuner]


def _run(
    operator: Operator,
    tokens: tuple[Tensor, Tensor, Tensor],
    arguments: dict[str, Any],
    *,
    backward: bool,
) -> None:
    if not backward:
        with torch.no_grad():
            operator(*tokens, **arguments)
        return
    leaves = tuple(x.detach().requires_grad_() for x in tokens)
    given: dict[str, Any] = {
        name: x.detach().requires_grad_()
        if isinstance(x, Tensor) and x.is_floating_point() and x.requires_grad
        else x
        for name, x in arguments.items()
    }
    with torch.enable_grad():
        out = operator(*leaves, **given)
        out = out[0] if isinstance(out, tuple) else out
        out.backward(torch.ones_like(out))
