"""What ``prepare`` takes and gives: chooses its arguments among those of a call, and checks its result."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch

from attncompiler.errors import MissingTensorError, PrepareError

# An argument of ``prepare`` after q, k and v.
Wanted = tuple[str, Literal["required", "optional", "rest"]]
# What ``prepare`` gives: q, k, v and tensors by name.
Prepared = tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def wanted_by(method: Any) -> tuple[Wanted, ...]:
    """The arguments of a ``prepare`` after q, k and v: name, and whether it is required, optional or ``**``."""
    return tuple(
        (
            p.name,
            "rest"
            if p.kind is p.VAR_KEYWORD
            else "required"
            if p.default is p.empty
            else "optional",
        )
        for p in list(inspect.signature(method).parameters.values())[3:]
    )


def chosen_arguments(
    wants: tuple[Wanted, ...], given: Mapping[str, torch.Tensor], q_start: int
) -> tuple[dict[str, Any], str | None]:
    """The arguments of ``prepare`` after q, k and v, and the name of one that it requires and nobody gave."""
    found: dict[str, Any] = {}
    for name, how in wants:
        if how == "rest":
            found |= given
        elif name == "q_start":
            found["q_start"] = q_start
        elif name in given:
            found[name] = given[name]
        elif how == "required":
            return found, name
    return found, None


def checked_result(
    variant: str, declared: Collection[str], result: object, given: dict[str, torch.Tensor]
) -> Prepared:
    """What ``prepare`` returned, with its tensors added to those given; ``declared`` are the names it may return.

    Raises PrepareError for a result of another form.
    """
    detail, fix = (
        "",
        "return q, k, v, or q, k, v, {'name': tensor} for tensors declared on the class",
    )
    extra: dict[str, torch.Tensor] = {}
    if not isinstance(result, tuple) or len(result) not in (3, 4):
        found = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        detail = f"it returned {'nothing' if result is None else found}"
    elif not all(isinstance(t, torch.Tensor) and t.dim() == 4 for t in result[:3]):
        detail = "q, k and v must be tensors of four axes"
    elif len({t.dtype for t in result[:3]}) > 1 and not torch.is_autocast_enabled("cpu"):
        found = ", ".join(str(t.dtype).removeprefix("torch.") for t in result[:3])
        detail = f"q, k and v must have one dtype, it returned {found}"
        fix = "convert what widens them, such as temperature.to(q.dtype), or return q.to(k.dtype)"
    elif len(result) == 4:
        extra = result[3] if isinstance(result[3], dict) else {}
        unknown = [n for n in extra if n not in declared]
        if not isinstance(result[3], dict):
            detail = f"the fourth result is a {type(result[3]).__name__}, not a dict"
        elif unknown:
            detail = f"tensor {unknown[0]!r} is not declared on the class"
    if detail or not isinstance(result, tuple):
        raise PrepareError(variant=variant, detail=detail, fix=fix)
    return result[0], result[1], result[2], given | extra


def run_carried(
    carrier: type,
    variant: str,
    declared: Mapping[str, str],
    call: tuple[torch.Tensor, torch.Tensor, torch.Tensor, int],
    given: dict[str, torch.Tensor],
    values: Mapping[str, Any],
    wants: tuple[Wanted, ...] | None = None,
) -> Prepared:
    """The ``prepare`` that class ``carrier`` of a package carries, on q, k, v, q_start of a ``call``.

    ``declared`` gives the axes of all tensors as text, ``values`` the parameters. Raises MissingTensorError and
    PrepareError.
    """
    view: Any = object.__new__(carrier)
    view.__dict__.update(values)
    *tokens, q_start = call
    wants = wanted_by(view.prepare) if wants is None else wants
    arguments, missing = chosen_arguments(wants, given, q_start)
    if missing is not None:
        axes = declared.get(missing, "undeclared")
        raise MissingTensorError(variant=variant, name=missing, axes=axes)
    return checked_result(variant, declared, view.prepare(*tokens, **arguments), given)
