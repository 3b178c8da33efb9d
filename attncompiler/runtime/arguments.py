"""Sorts the keywords of a call into parameter values and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor

from attncompiler import errors
from attncompiler.caller import attribute_location
from attncompiler.runtime.call_checks import check_least
from attncompiler.runtime.call_checks import number as number
from attncompiler.runtime.errors import PositionalTensorError
from attncompiler.variant import Variant


def refuse_positional(variant: Variant, count: int) -> NoReturn:
    """Raise PositionalTensorError for ``count`` arguments after q, k and v."""
    known = [
        f"{name}=..." for name in (*variant._tensors, *variant._parameters, "q_start", "scale")
    ]
    raise PositionalTensorError(variant=type(variant).__name__, count=count, known=", ".join(known))


def split_arguments(
    variant: Variant,
    arguments: Mapping[str, Any],
    params: Mapping[str, float] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Values of parameters and tensors of a call, over those given as defaults.

    Raises UnknownArgumentError for a keyword that is neither, ParameterTypeError for a value of another type.
    """
    values, found = dict(params or {}), dict(tensors or {})
    name = type(variant).__name__
    for key, value in arguments.items():
        if key in variant._tensors:
            found[key] = value
        elif key in variant._parameters:
            values[key] = number(name, key, variant._parameters[key], value)
        else:
            known = [*variant._tensors, *variant._parameters]
            raise errors.UnknownArgumentError(
                variant=name,
                name=key,
                known=errors.listed(key, known)
                or "only q, k, v, q_start, scale, sparsity and return_stats",
            )
    return values, found


def check_limits(
    variant: Variant, limits: Mapping[str, tuple[int, str]], values: Mapping[str, Any]
) -> None:
    """``check_least`` with an error that shows where the class gives the parameter its value."""
    try:
        check_least(limits, values)
    except errors.TooSmallError as error:
        error.location = attribute_location(type(variant), error.parameter)
        raise
