"""Checks numbers that a user gives: turns them into values of the kind that was declared, or into an error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from attncompiler import errors

if TYPE_CHECKING:
    from attncompiler.ir.declared import Kind
    from attncompiler.ir.location import Location

# Names the operator's own arguments have; a tensor or parameter of that name could not be passed.
CALL_ARGUMENTS = frozenset({"q", "k", "v", "q_start", "return_stats", "scale", "sparsity"})


def checked_value(
    variant: str, name: str, kind: Kind, value: object, location: Location | None
) -> float:
    """The value as the parameter's type; an int is a float, nothing else is converted silently."""
    if _records_gradient(value):
        raise errors.ParameterTypeError(
            location=location,
            variant=variant,
            name=name,
            kind=_article(kind),
            value=value,
            fix=f"parameters have no gradient: pass {name}.item(), or declare {name} = Tensor()",
        )
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = cast(Any, value).item()
    fix: str
    match kind:
        case "bool":
            if isinstance(value, bool):
                return value
            fix = "give True or False"
        case "int":
            if isinstance(value, int) and not isinstance(value, bool):
                if -(2**63) <= value < 2**63:
                    return value
                fix = "kernels compute with integers of 64 bits"
            else:
                may_be_float = isinstance(value, float) and name not in CALL_ARGUMENTS
                whole = may_be_float and math.isfinite(cast(float, value))
                fix = f"give an int, or annotate {name}: float" if whole else "give an int"
        case "float":
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                try:
                    return float(value)
                except OverflowError:  # an int beyond the range of floats
                    fix = "give a number below 1.8e308"
            else:
                fix = "give a number"
    raise errors.ParameterTypeError(
        location=location, variant=variant, name=name, kind=_article(kind), value=value, fix=fix
    )


def _records_gradient(value: object) -> bool:
    """Whether taking only the number of a torch tensor would lose a gradient."""
    if not getattr(value, "requires_grad", False):
        return False
    import torch

    return torch.is_grad_enabled()


def _article(kind: Kind) -> str:
    return f"an {kind}" if kind == "int" else f"a {kind}"
