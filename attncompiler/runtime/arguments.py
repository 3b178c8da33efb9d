"""Sorts the keywords of a call into parameter values and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from attncompiler import errors
from attncompiler.caller import attribute_location
from attncompiler.declarations import checked_value
from attncompiler.ir.ops import Kind
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


def number(variant: str, name: str, kind: Kind, value: Any) -> Any:
    """The value as a scalar of the kind; a tracer's symbolic number stays symbolic. Raises ParameterTypeError."""
    if kind == "float" and isinstance(value, (float, torch.SymFloat)):
        return value
    if kind == "float" and isinstance(value, torch.SymInt):
        return torch.sym_float(value)  # type: ignore[no-untyped-call]
    if kind == "int" and isinstance(value, torch.SymInt):
        return value
    # Dynamo shows symbolic numbers as ordinary ones that only arithmetic may look at.
    if torch.compiler.is_compiling() and isinstance(value, int) and not isinstance(value, bool):
        if kind == "int":
            return value
        if kind == "float":
            return float(value)
    return checked_value(variant, name, kind, value, None)


def check_limits(
    variant: Variant, limits: Mapping[str, tuple[int, str]], values: Mapping[str, Any]
) -> None:
    """Raise TooSmallError for a parameter that is a window, a block ... and too small; symbols of a trace may be."""
    for name, (least, what) in limits.items():
        value = values.get(name)
        if type(value) is int and value < least:
            raise errors.TooSmallError(
                location=attribute_location(type(variant), name),
                what=f"parameter {name!r}, the {what},",
                value=value,
                least=least,
            )
