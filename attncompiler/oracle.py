"""The meaning of every variant: runs the user's own methods on float64 torch tensors over the full [B, H, M, N] grid.

No compiler code is on this path: no symbols, no expressions, no passes. Autograd gives the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from attncompiler import errors
from attncompiler.oracle_values import (
    Elements,
    OutputPlace,
    Place,
    Row,
    counted_pairs,
    drop_gradient,
    grid,
)
from attncompiler.preparation import run_prepare
from attncompiler.sampling import tensor_shape
from attncompiler.variant import Variant


@dataclass(frozen=True, slots=True)
class OracleResult:
    """``out`` is [B, H, M, Dv]; ``stats`` maps the name of each kept statistic to [B, H, M]."""

    out: torch.Tensor
    stats: dict[str, torch.Tensor]


def attention(
    variant: Variant,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    q_start: int = 0,
    tensors: Mapping[str, torch.Tensor] | None = None,
    params: Mapping[str, float | torch.Tensor] | None = None,
    scale: float | None = None,
    dtype: torch.dtype | None = torch.float64,
    order: int = 0,
    listed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> OracleResult:
    """Attention as the variant defines it, dense and differentiable.

    q is [B, H, M, D], k [B, G, N, D], v [B, G, N, Dv], H a multiple of G; query positions start at ``q_start``.
    ``params`` overrides parameter values, ``scale`` the variant's. ``dtype`` is the precision of everything; None
    keeps that of q, which is what a dense PyTorch implementation would do. The default scale is 1/sqrt(D) of the
    q that ``prepare`` returns. ``listed(q, k)`` says which pairs may be attended at all, as a bool that
    broadcasts to [B, H, M, N]; q and k are those that ``prepare`` returns. ``order`` names one of many orders in which
    products are summed: the same result, rounded otherwise (0: as q, k and v lie).

    Raises ShapeError and MissingTensorError for inputs that do not fit, OutOfRangeError (an IndexError) for a tensor
    read outside its extent at an allowed pair.
    """
    real = q.dtype if dtype is None else dtype
    with _precision(real):
        evaluation = _evaluation(variant, q, k, v, q_start, tensors, params, scale, real, order)
        layout = variant.layout
        pairs = None if listed is None else listed(evaluation.q, evaluation.k)
        if pairs is not None and layout is not None:
            # Blocks are made of tokens in the order of the layout.
            pairs = layout.restored(
                layout.restored(pairs, pairs.dim() - 1, keys=True), pairs.dim() - 2
            )
        run = evaluation.run(pairs)
        if layout is None or layout.permuted_by == "op":
            return run
        return OracleResult(
            layout.arranged(run.out), {name: layout.arranged(x) for name, x in run.stats.items()}
        )


def allowed_pairs(
    variant: Variant,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    q_start: int = 0,
    tensors: Mapping[str, torch.Tensor] | None = None,
    params: Mapping[str, float | torch.Tensor] | None = None,
) -> torch.Tensor:
    """The mask as bool ``[1 or B, 1 or H, M, N]``: an axis of extent 1 is one the mask does not read.

    The arguments and the errors are those of ``attention``; q, k and v are what ``prepare`` may look at.
    """
    real = torch.float64
    with _precision(real):
        evaluation = _evaluation(variant, q, k, v, q_start, tensors, params, None, real, 0)
        mask = evaluation.mask()
    batch, heads = (1, 1, *mask.shape)[-4:-2] if mask.dim() >= 2 else (1, 1)
    return mask.expand(batch, heads, *evaluation.shape[2:])


def _evaluation(
    variant: Variant,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_start: int,
    tensors: Mapping[str, torch.Tensor] | None,
    params: Mapping[str, float | torch.Tensor] | None,
    scale: float | None,
    real: torch.dtype,
    order: int,
) -> _Evaluation:
    """A call in the precision ``real``, after ``prepare``."""
    values = {n: _parameter(x) for n, x in (variant.parameters() | dict(params or {})).items()}
    given = {n: _cast(t, real) for n, t in (tensors or {}).items()}
    q, k, v, given = run_prepare(
        variant, q.to(real), k.to(real), v.to(real), given, params=params, q_start=q_start
    )
    if scale is None:
        scale = variant.scale if "scale" not in values else float(values["scale"])
    layout = variant.layout
    if layout is not None and layout.permuted_by == "caller":
        # Formulas mean row-major positions.
        q, k, v = (layout.restored(x) for x in (q, k, v))
    return _Evaluation(variant, q, k, v, given, values, q_start, scale, order)


def _product(x: torch.Tensor, y: torch.Tensor, order: int) -> torch.Tensor:
    """x @ y, and its gradients, summed in one of many orders."""
    if order == 0:
        return x @ y
    generator = torch.Generator().manual_seed(order)
    inner, columns = (torch.randperm(n, generator=generator) for n in y.shape[-2:])
    return (x[..., inner] @ y[..., inner, :][..., columns])[..., columns.argsort()]


class _Evaluation:
    def __init__(
        self,
        variant: Variant,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        tensors: dict[str, torch.Tensor],
        params: dict[str, torch.Tensor],
        q_start: int,
        scale: float | None,
        order: int,
    ) -> None:
        batch, heads, rows, depth = q.shape
        groups, keys, width = v.shape[1:]
        if (
            groups == 0
            or heads % groups
            or k.shape != (batch, groups, keys, depth)
            or v.shape[0] != batch
        ):
            raise errors.ShapeError(
                name="q, k, v",
                detail=f"shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} do not fit",
                fix="q is [B, H, M, D], k [B, G, N, D], v [B, G, N, Dv], H a multiple of G",
            )
        sizes = {"B": batch, "H": heads, "G": groups, "M": rows, "N": keys, "D": depth, "Dv": width}
        self.shape = (batch, heads, rows, keys)
        self.sizes = sizes
        self.q_start, self.order = q_start, order
        self.q, self.k = q, k
        self.v = v.repeat_interleave(heads // groups, 1)
        factor = depth**-0.5 if scale is None else scale
        keys_by_head = k.repeat_interleave(heads // groups, 1)
        self.dot = factor * _product(q, keys_by_head.transpose(-1, -2), order)
        head = torch.arange(heads).view(1, -1, 1, 1)
        self.row_indices: dict[str, Any] = {
            "b": torch.arange(batch).view(-1, 1, 1, 1),
            "h": head,
            "g": head // (heads // groups),
            "q": (torch.arange(rows) + q_start).view(1, 1, -1, 1),
        }
        self.pair_indices = {**self.row_indices, "k": torch.arange(keys).view(1, 1, 1, -1), **sizes}
        self.view = self._view(variant, tensors, params)

    def _view(
        self, variant: Variant, tensors: dict[str, torch.Tensor], params: dict[str, torch.Tensor]
    ) -> Variant:
        """A second instance of the class whose parameters and tensors are values: what the slots see as ``self``."""
        view = object.__new__(type(variant))
        view.__dict__.update(variant.__dict__)
        view.__dict__.update({name: grid(value) for name, value in params.items()})
        free: dict[str, int] = {}
        for name, declared in variant._tensors.items():
            if name not in tensors:
                raise errors.MissingTensorError(
                    location=declared.location,
                    variant=type(variant).__name__,
                    name=name,
                    axes=", ".join(map(str, declared.axes)),
                )
            tensor = tensors[name]
            free |= {
                a: n
                for a, n in zip(declared.axes, tensor.shape, strict=False)
                if isinstance(a, str) and a not in free
            }
            # As in the operator, an axis called "D" is a free name: prepare may have changed the head dimension.
            sizes = {size: n for size, n in self.sizes.items() if size != "D"}
            wanted = tensor_shape(declared, free | sizes)
            if tuple(tensor.shape) != wanted:
                raise errors.ShapeError(
                    location=declared.location,
                    name=name,
                    detail=f"shape {tuple(tensor.shape)}, expected {wanted}",
                    fix=f"it is declared over {', '.join(map(str, declared.axes)) or 'no axes'}",
                )
            elements = Elements(name, tensor, declared.axes, self.q_start)
            view.__dict__[name] = elements if declared.axes else grid(tensor)
        return view

    def mask(self) -> torch.Tensor:
        """Which pairs are allowed, with extent 1 along axes (or without them) that make no difference."""
        return grid(self.view.mask(Place(self.pair_indices))).as_subclass(torch.Tensor)

    def run(self, listed: torch.Tensor | None = None) -> OracleResult:
        """All of it; ``listed`` restricts the mask."""
        mask = self.mask()
        allowed = (mask if listed is None else mask & listed).expand(self.shape)
        empty = ~allowed.any(-1, keepdim=True)
        outer = counted_pairs.set(allowed)
        try:
            weight, kept = self._weights(self._scores(allowed), allowed, empty)
        finally:
            counted_pairs.reset(outer)
        weight = torch.where(allowed, weight, torch.zeros((), dtype=weight.dtype))
        out = _product(weight, self.v, self.order)
        if out.requires_grad:
            # What the output slot does with a statistic of a row without keys must not reach v (0 * inf ...).
            drop_gradient(out, ~empty)
        indices = {**self.row_indices, "d": torch.arange(out.shape[-1]).view(1, 1, 1, -1)}
        place = OutputPlace({**indices, **self.sizes}, tuple(out.shape), kept)
        final = self._real(self.view.output(grid(out), place)).expand(out.shape)
        return OracleResult(
            final, {n: s.expand(*self.shape[:3], 1)[..., 0] for n, s in kept.items()}
        )

    def _scores(self, allowed: torch.Tensor) -> torch.Tensor:
        if self.dot.requires_grad:
            # What a score does at a forbidden pair (0 * inf ...) must not reach q and k.
            drop_gradient(self.dot, allowed)
        s = self._real(self.view.score(grid(self.dot), Place(self.pair_indices))).expand(self.shape)
        # Forbidden pairs get a score of their own row, so that no formula overflows there.
        harmless = torch.where(allowed, s, -torch.inf).detach()
        anchor = harmless.amax(-1, keepdim=True) if s.shape[-1] else harmless
        anchor = torch.where(torch.isfinite(anchor), anchor, 0.0)
        return torch.where(allowed, s, anchor)

    def _weights(
        self, scores: torch.Tensor, allowed: torch.Tensor, empty: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Weights and kept statistics. Rows without keys pretend to have all, so that gradients are 0, not nan."""
        if scores.shape[-1] == 0:
            weight, kept = self._normalize(scores, allowed)
            return weight, {n: s.detach() for n, s in kept.items()}
        if not bool(empty.any()):
            return self._normalize(scores, allowed)
        weight, kept = self._normalize(scores, allowed | empty)
        with torch.no_grad():
            identities = self._normalize(scores, allowed)[1]
        return weight, {n: torch.where(empty, identities[n], kept[n]) for n in kept}

    def _normalize(
        self, scores: torch.Tensor, allowed: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        row = Row(self.pair_indices, allowed)
        weight = self._real(self.view.normalize(grid(scores), row)).expand(self.shape)
        return weight, {n: _one_a_row(s.to(weight.dtype), allowed) for n, s in row.kept.items()}

    def _real(self, value: Any) -> torch.Tensor:
        return grid(value).as_subclass(torch.Tensor).to(torch.get_default_dtype())


def _one_a_row(stat: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """A row statistic with extent 1 along the keys: tensors that need a gradient are read once a pair."""
    if stat.dim() == 0 or stat.shape[-1] in (0, 1):
        return stat
    first = allowed.to(torch.int8).argmax(-1, keepdim=True)
    return stat.expand(allowed.shape).gather(-1, first)


def _cast(tensor: torch.Tensor, real: torch.dtype) -> torch.Tensor:
    if tensor.is_floating_point():
        return tensor.to(real)
    return tensor if tensor.dtype == torch.bool else tensor.to(torch.int64)


def _parameter(value: float | torch.Tensor) -> torch.Tensor:
    """A 0-d tensor, so that parameters divide and take methods as symbols do; ints and bools keep their kind."""
    return value if isinstance(value, torch.Tensor) else torch.tensor(value)


@contextmanager
def _precision(real: torch.dtype) -> Iterator[None]:
    """Make ``real`` the type that ints become when they meet floats."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(real)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
