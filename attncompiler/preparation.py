"""Runs the ``prepare`` slot: turns the caller's q, k, v and tensors into those the kernel (or the oracle) sees."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from attncompiler import errors
from attncompiler.slots import slot_location
from attncompiler.user_code import UserCode
from attncompiler.variant import Variant

if TYPE_CHECKING:
    import torch

# An argument of ``prepare`` after q, k and v.
Wanted = tuple[str, Literal["required", "optional", "rest"]]


def run_prepare(
    variant: Variant,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensors: Mapping[str, torch.Tensor],
    *,
    params: Mapping[str, Any] | None = None,
    q_start: int = 0,
    wants: tuple[Wanted, ...] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Call ``variant.prepare`` and add the tensors it returns to those given.

    ``prepare`` receives the declared tensors its signature names (all of them for ``**tensors``), and ``q_start`` when
    it names that; ``self`` carries the parameters of this call. ``wants`` is what ``wanted_by`` says, for callers
    that ask once. Raises MissingTensorError for a tensor it names that
    was not given, SlotFailedError for what ``prepare`` raises, PrepareError for a result of another form.
    """
    method = getattr(variant, "prepare", None)
    given = dict(tensors)
    if method is None:
        return q, k, v, given
    view = object.__new__(type(variant))
    view.__dict__.update(variant.__dict__)
    view.__dict__.update(params or {})
    method = view.prepare  # type: ignore[attr-defined]
    wants = wanted_by(method) if wants is None else wants
    arguments = _arguments(variant, method, wants, given, q_start)
    with UserCode(variant, "prepare", slot_location(method)):
        result = method(q, k, v, **arguments)
    return _checked(variant, result, given)


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


def _arguments(
    variant: Variant,
    method: Any,
    wants: tuple[Wanted, ...],
    given: dict[str, torch.Tensor],
    q_start: int,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, how in wants:
        if how == "rest":
            found |= given
        elif name == "q_start":
            found["q_start"] = q_start
        elif name in given:
            found[name] = given[name]
        elif how == "required":
            tensor = variant._tensors.get(name)
            raise errors.MissingTensorError(
                location=tensor.location if tensor else slot_location(method),
                variant=type(variant).__name__,
                name=name,
                axes=", ".join(map(str, tensor.axes)) if tensor else "undeclared",
            )
    return found


def _checked(
    variant: Variant, result: object, given: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    import torch

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
        unknown = [n for n in extra if n not in variant._tensors]
        if not isinstance(result[3], dict):
            detail = f"the fourth result is a {type(result[3]).__name__}, not a dict"
        elif unknown:
            detail = f"tensor {unknown[0]!r} is not declared on the class"
    if detail or not isinstance(result, tuple):
        raise errors.PrepareError(
            location=slot_location(getattr(variant, "prepare", None)),
            variant=type(variant).__name__,
            detail=detail,
            fix=fix,
        )
    return result[0], result[1], result[2], given | extra
