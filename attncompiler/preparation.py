"""Runs the ``prepare`` slot: turns the caller's q, k, v and tensors into those the kernel (or the oracle) sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attncompiler import errors
from attncompiler.runtime.prepared import Wanted, checked_result, chosen_arguments
from attncompiler.runtime.prepared import wanted_by as wanted_by
from attncompiler.slots import slot_location
from attncompiler.user_code import UserCode
from attncompiler.variant import Variant

if TYPE_CHECKING:
    import torch


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
    arguments, missing = chosen_arguments(wants, given, q_start)
    name, definition = type(variant).__name__, slot_location(method)
    if missing is not None:
        tensor = variant._tensors.get(missing)
        raise errors.MissingTensorError(
            location=tensor.location if tensor else definition,
            variant=name,
            name=missing,
            axes=", ".join(map(str, tensor.axes)) if tensor else "undeclared",
        )
    with UserCode(variant, "prepare", definition):
        result = method(q, k, v, **arguments)
    try:
        return checked_result(name, variant._tensors, result, given)
    except errors.PrepareError as error:
        error.location = definition
        raise
