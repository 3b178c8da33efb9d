"""Launches kernels: checks a call once for each set of shapes, strides and dtypes, allocates and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attncompiler.errors import ShapeError
from attncompiler.runtime.backward_plan import Gradients, run_backward
from attncompiler.runtime.call_checks import (
    EIGHT_BITS,
    ELEMENT_TYPES,
    LARGEST_POSITION,
    check_inputs,
    check_tensors,
    check_trains,
    refuse_eight_bits,
    sizes_of,
)
from attncompiler.runtime.library import Layout, Library
from attncompiler.runtime.signature import Described, KernelSet, real_of
from attncompiler.runtime.situation import Situation
from attncompiler.runtime.tile_tables import Sizes, TileTables, readable


def _plain_keys(device: str) -> frozenset[int]:
    """What torch would dispatch on for ordinary tensors of a device, with and without autograd's bookkeeping.

    Everything that a kernel must not read as plain memory (other devices and layouts, negated views, fake tensors,
    subclasses with their own dispatch, transforms) has more or other keys.
    """
    ordinary = torch.empty(0, device=device)
    with torch.inference_mode():
        inference = torch.empty(0, device=device)
    return frozenset(torch._C._dispatch_keys(x).raw_repr() for x in (ordinary, inference))


_CPU_KEYS = _plain_keys("cpu")
_cuda_keys = cache(partial(_plain_keys, "cuda"))
_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, torch.nn.Buffer))
# Calls with lengths that never return (decoding) must not fill the memory.
_MOST_SITES = 256


def is_plain(tensors: Sequence[object]) -> bool:
    """Whether a kernel may run on these tensors right here: nothing records, traces or transforms the call."""
    recording = torch.is_grad_enabled()
    keys = torch._C._dispatch_keys
    plain = _cuda_keys() if getattr(tensors[0], "is_cuda", False) else _CPU_KEYS
    for x in tensors:
        if (
            type(x) not in _PLAIN_TYPES
            or keys(x).raw_repr() not in plain  # type: ignore[arg-type]
            or (recording and x.requires_grad)  # type: ignore[attr-defined]
        ):
            return False
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


@dataclass(frozen=True, slots=True)
class Site:
    """What all calls with the same shapes, strides and dtypes share.

    ``last_start`` is the largest ``q_start``; ``holes`` says that some captured tensor has no element; ``tables``
    finds the states of tiles, for masks that need it.
    """

    library: Library
    layout: Layout
    shape: tuple[int, int, int, int]
    last_start: int
    holes: bool
    sizes: Sizes
    tables: TileTables | None


class Tuner(Protocol):
    """What a launcher asks to find the best kernel before a call of a new kind; its arguments are the call's."""

    def forward(self, *call: Any) -> None:
        """Before ``Launcher.forward``."""

    def backward(self, *call: Any, **named: Any) -> None:
        """Before ``Launcher.backward``."""


class Launcher:
    """Runs the forward kernels of one compilation on real tensors."""

    def __init__(self, kernels: KernelSet) -> None:
        self.kernels = kernels
        self._dot_factor = kernels.dot_factor
        self._none_kept = (None,) * len(kernels.signature.kept)
        self._sites: dict[tuple[object, ...], Site] = {}
        self.tuner: Tuner | None = None

    def forget(self) -> None:
        """Choose kernels anew at the next calls."""
        self._sites.clear()

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        captured: Sequence[Tensor],
        q_start: int,
        scale: float,
        numbers: Sequence[float],
        stats: bool = False,
        train: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The output [B, H, M, Dv] and what else was asked for, else None; raises what ``check_inputs`` raises.

        Then follow, with ``stats``, the kept statistics [n, B, H, M], and with ``train`` the statistics that the
        backward reads [n, B, H, M] and, where it reads one that is not the output, the value [B, H, M, Dv].
        """
        key: tuple[object, ...] = (
            *(q.shape, q.stride(), q.dtype, k.shape, k.stride(), k.dtype),
            *(v.shape, v.stride(), v.dtype),
        )
        for x in captured:
            key += (x.shape, x.stride(), x.dtype)
        site = self._sites.get(key)
        if site is None:
            site = self._checked(q, k, v, captured, q_start, numbers)
            if self.tuner is not None:
                self.tuner.forward(q, k, v, captured, q_start, scale, numbers, stats, train)
                site = self._checked(q, k, v, captured, q_start, numbers)
            if len(self._sites) >= _MOST_SITES:
                self._sites.clear()
            self._sites[key] = site
        elif not 0 <= q_start <= site.last_start:
            check_inputs(q, k, v, q_start)
        if site.holes:
            captured = [readable(x) for x in captured]
        out = torch.empty(site.shape, dtype=q.dtype, device="cpu")
        kept = saved = value = None
        kept_rows: Sequence[Tensor | None] = self._none_kept
        saved_rows: Sequence[Tensor | None] = ()
        if stats or train:
            kernels, real = self.kernels, real_of(q.dtype)
            if stats:
                kept = out.new_empty((len(kernels.signature.kept), *site.shape[:3]), dtype=real)
                kept_rows = kept.unbind()
            if train:
                names = kernels.saved
                saved = out.new_empty((len(names), *site.shape[:3]), dtype=real)
                rows = dict(zip(names, saved.unbind(), strict=True))
                saved_rows = [rows.get(name) for name in kernels.signature.stats]
                if kernels.saves_value(q.dtype):
                    value = out.new_empty(site.shape, dtype=real)
        table = None
        if site.tables is not None:
            kernel = self.kernels.signature
            table = site.tables.table(
                site.sizes,
                q_start,
                {p.name: x for p, x in zip(kernel.params, numbers, strict=True)},
                {t.name: x for t, x in zip(kernel.tensors, captured, strict=True)},
            )
        site.library(
            q,
            k,
            v,
            out,
            layout=site.layout,
            q_start=q_start,
            scale=scale * self._dot_factor,
            params=numbers,
            tensors=captured,
            kept=kept_rows,
            saved=saved_rows,
            value=value,
            table=table,
        )
        return out, kept, saved, value

    def backward(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        grad: Tensor,
        kept_grads: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        *,
        q_start: int,
        scale: float,
        params: Mapping[str, float],
        saved: Mapping[str, Tensor],
        value: Tensor,
        wants: tuple[bool, bool, bool],
        wanted: frozenset[str],
    ) -> Gradients:
        """The gradients of q, k and v as ``wants`` says, and of the tensors in ``wanted``.

        ``inputs`` are q, k and v; ``grad`` [B, H, M, Dv] and ``kept_grads`` [B, H, M] those of the results; ``saved``
        and ``value`` what the forward kept. All errors of ``check_inputs`` and ``check_tensors``.
        """
        kernels = self.kernels
        q, k, v = inputs
        types_of = check_backward(kernels, inputs, grad, kept_grads, tensors, q_start, saved, value)
        if self.tuner is not None:
            self.tuner.backward(
                inputs,
                grad,
                kept_grads,
                tensors,
                q_start=q_start,
                scale=scale,
                params=params,
                saved=saved,
                value=value,
                wants=wants,
                wanted=wanted,
            )
        dims = ELEMENT_TYPES[q.dtype], q.shape[3], v.shape[3]
        situation = Situation(Sizes.of(q, k), q_start, params, tensors)
        signature, library = kernels.backward(types_of, dims, wanted, situation)
        tables = kernels.tables(ELEMENT_TYPES[q.dtype], types_of)
        table = None
        if tables is not None:
            read = {name: readable(x) for name, x in tensors.items()}
            table = tables.table(Sizes.of(q, k), q_start, params, read)
        return run_backward(
            signature,
            library,
            q,
            k,
            v,
            grad,
            value=value,
            saved=saved,
            kept_grads=kept_grads,
            tensors=tensors,
            params=params,
            q_start=q_start,
            scale=scale * self._dot_factor,
            wants=wants,
            table=table,
        )

    def _checked(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        captured: Sequence[Tensor],
        q_start: int,
        numbers: Sequence[float],
    ) -> Site:
        check_inputs(q, k, v, q_start)
        if q.dtype in EIGHT_BITS:
            refuse_eight_bits(f"elements of type {q.dtype} are not supported by the cpp backend")
        types = check_tensors(
            self.kernels.name, self.kernels.signature.tensors, captured, sizes_of(q, v), q.device
        )
        sizes, names = Sizes.of(q, k), [t.name for t in self.kernels.signature.tensors]
        params = {p.name: x for p, x in zip(self.kernels.signature.params, numbers, strict=True)}
        situation = Situation(sizes, q_start, params, dict(zip(names, captured, strict=True)))
        dims = ELEMENT_TYPES[q.dtype], q.shape[3], v.shape[3]
        library = self.kernels.forward(dims, types, situation)
        shape = (*q.shape[:3], v.shape[3])
        out = torch.empty(shape, dtype=q.dtype, device="meta")
        layout = library.layout(q, k, v, out, [readable(x) for x in captured])
        holes = any(x.numel() == 0 for x in captured)
        tables = self.kernels.tables(dims[0], dict(zip(names, types, strict=True)))
        return Site(library, layout, shape, LARGEST_POSITION - q.shape[2], holes, sizes, tables)


def check_backward(
    kernels: Described,
    inputs: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    kept_grads: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    q_start: int,
    saved: Mapping[str, Tensor],
    value: Tensor,
) -> dict[str, str]:
    """The element types of captured tensors by name, after all checks of a backward call; see ``Launcher.backward``."""
    q, k, v = inputs
    check_inputs(q, k, v, q_start)
    check_trains(kernels.name, q.dtype)
    declared = kernels.signature.tensors
    given = [tensors[t.name] for t in declared]
    types = check_tensors(kernels.name, declared, given, sizes_of(q, v), q.device)
    _check_shape("the gradient of the output", grad, (*q.shape[:3], v.shape[3]))
    if kernels.reads_value:
        _check_shape("the output row", value, (*q.shape[:3], v.shape[3]))
    for name, x in (*saved.items(), *kept_grads.items()):
        _check_shape(f"statistic {name}", x, tuple(q.shape[:3]))
    return dict(zip((t.name for t in declared), types, strict=True))


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Only calls of the op by hand can fail here; a kernel would read beyond the tensor."""
    if tuple(x.shape) != shape:
        raise ShapeError(
            name=name,
            detail=f"it has shape {list(x.shape)}, expected {list(shape)}",
            fix="pass what the forward op returned",
        )
