"""Runs Triton kernels on the tensors of a call: checks each set of shapes once, allocates, plans and launches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from attncompiler.backends.gpu_targets import Target
from attncompiler.backends.names import tensor_name
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.runtime.backward_plan import Gradients
from attncompiler.runtime.call_checks import (
    EIGHT_BITS,
    INPUT_TYPES,
    LARGEST_POSITION,
    check_inputs,
    check_tensors,
    check_trains,
    refuse_eight_bits,
    sizes_of,
)
from attncompiler.runtime.errors import DtypeError
from attncompiler.runtime.launch import check_backward
from attncompiler.runtime.signature import Described, output_type
from attncompiler.runtime.tile_tables import Sizes, readable
from attncompiler.runtime.tilings import (
    Tilings,
    Trial,
    choice_of,
    choices_of,
    first_accepted,
    for_pointers,
    tilings,
)
from attncompiler.runtime.triton_backward import run_backward
from attncompiler.runtime.triton_launch import TileLists, Tiling, run_forward
from attncompiler.runtime.triton_modules import Dims, TritonModules
from attncompiler.runtime.triton_planner import Planner

# Calls with lengths that never return (decoding) must not fill the memory.
_MOST_SITES = 256
_Pair = tuple[tuple[Kind, Tilings], tuple[Kind, Tilings]]


@dataclass(frozen=True, slots=True)
class Site:
    """What all calls with the same shapes, strides and dtypes share; ``as_float16`` is that of ``run_forward``."""

    module: ModuleType
    tilings: Tilings
    shape: tuple[int, int, int, int]
    last_start: int
    holes: bool
    sizes: Sizes
    planner: Planner | None
    as_float16: bool


class Tuner(Protocol):
    """What an engine asks to put the best tilings first when it first meets the shapes of a call."""

    def forward(
        self, engine: TritonEngine, module: ModuleType, options: Tilings, call: tuple[Any, ...]
    ) -> None:
        """Before ``engine.forward(*call)`` launches."""

    def backward(
        self,
        engine: TritonEngine,
        module: ModuleType,
        options: Sequence[tuple[Kind, Tilings]],
        call: tuple[Any, ...],
        named: Mapping[str, Any],
    ) -> None:
        """Before ``engine.backward(*call, **named)`` launches."""


class TritonEngine:
    """The Triton kernels of one variant: ``kernels`` describes it, ``sources`` are its files.

    Kernels of another language that take the same calls run here too; ``backend`` is what the user knows them by.
    """

    def __init__(self, kernels: Described, sources: TritonModules, backend: str = "triton") -> None:
        self.kernels = kernels
        self.sources = sources
        self.backend = backend
        # Tests choose tiles themselves, one tiling for all kernels; tuning one for each.
        self.tiling: Tiling | None = None
        self.fixed: Mapping[Kind, Tiling] = {}
        self.tuner: Tuner | None = None
        self.deterministic = True
        self._factor = kernels.dot_factor
        self._shrinks = backend == "triton"
        self._sites: dict[tuple[object, ...], Site] = {}
        self._gradient_sites: dict[tuple[object, ...], _Pair] = {}
        self._planners: dict[ModuleType, Planner] = {}

    def forget(self) -> None:
        """Choose tilings anew at the next calls."""
        self._sites.clear()
        self._gradient_sites.clear()

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
        """The output [B, H, M, Dv] and what else was asked for, else None; see ``Launcher``."""
        if train:
            check_trains(self.kernels.name, q.dtype)
        met = len(self._sites)
        site = self._site(q, k, v, captured, q_start)
        if self.tuner is not None and len(self._sites) != met:
            call = q, k, v, captured, q_start, scale, numbers, stats, train
            self.tuner.forward(self, site.module, site.tilings, call)
        if site.holes:
            captured = [readable(x) for x in captured]
        kernels = self.kernels
        out = q.new_empty(site.shape, dtype=output_type(q.dtype))
        kept = saved = value = None
        rows: dict[str, Tensor] = {}
        if stats:
            kept = out.new_empty(
                (len(kernels.signature.kept), *site.shape[:3]), dtype=torch.float32
            )
        if train:
            saved = out.new_empty((len(kernels.saved), *site.shape[:3]), dtype=torch.float32)
            known = dict(zip(kernels.saved, saved.unbind(), strict=True))
            names = zip(kernels.signature.stats, self.sources.signature.stats, strict=True)
            rows = {argument: known[name] for name, argument in names if name in known}
            if kernels.saves_value(q.dtype):
                value = out.new_empty(site.shape, dtype=torch.float32)

        def launch(tried: Sequence[Tiling], trial: Trial) -> None:
            tiling = for_pointers(tried[0], q, k, v)
            run_forward(
                trial.run,
                site.module,
                self.sources.signature,
                tiling,
                q,
                k,
                v,
                out,
                q_start=q_start,
                scale=scale * self._factor,
                params=numbers,
                tensors=captured,
                kept=kept,
                saved=rows,
                value=value,
                lists=self._lists(site, tiling, q, captured, q_start, numbers),
                allow_tf32=_allows_tf32(q),
                as_float16=site.as_float16,
            )

        first_accepted([("forward", site.tilings)], launch)
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
        """The gradients; see ``Launcher.backward``."""
        kernels = self.kernels
        q, k, v = inputs
        types_of = check_backward(kernels, inputs, grad, kept_grads, tensors, q_start, saved, value)
        dims = _dims(q, v)
        backward, module = self.sources.backward(dims, types_of, wanted)
        planner = self._planner(dims, types_of, huge=_huge(params.values()))
        signature = self.sources.signature
        gradient = grad if grad.stride(3) == 1 or grad.shape[3] == 1 else grad.contiguous()

        def launch(tried: Sequence[Tiling], trial: Trial) -> Gradients:
            by_rows, by_columns = tried
            rows, columns = (for_pointers(t, q, k, v, gradient) for t in (by_rows, by_columns))
            lists: tuple[TileLists | None, TileLists | None] = (None, None)
            if planner is not None:
                numbers = {argument: params[name] for name, argument in signature.params}
                read = {tensor_name(n): readable(x) for n, x in tensors.items()}
                sizes = Sizes.of(q, k)

                def listed(tiling: Tiling, *, transposed: bool) -> TileLists:
                    block = tiling.block_m, tiling.block_n
                    return planner.lists(
                        q.device, sizes, q_start, numbers, read, block, transposed=transposed
                    )

                lists = listed(rows, transposed=False), listed(columns, transposed=True)
            return run_backward(
                trial.run,
                module,
                backward,
                (rows, columns),
                q,
                k,
                v,
                gradient,
                value=value.contiguous() if kernels.reads_value else None,
                saved={n: x.contiguous() for n, x in saved.items()},
                kept_grads={n: x.contiguous() for n, x in kept_grads.items()},
                tensors=tensors,
                params=params,
                q_start=q_start,
                scale=scale * self._factor,
                lists=lists,
                wants=wants,
                deterministic=self.deterministic,
                allow_tf32=_allows_tf32(q),
            )

        met = len(self._gradient_sites)
        choices = self._backward_tilings(q, k, v, gradient, wanted)
        if self.tuner is not None and len(self._gradient_sites) != met:
            named = {
                "q_start": q_start,
                "scale": scale,
                "params": params,
                "saved": saved,
                "value": value,
                "wants": wants,
                "wanted": wanted,
            }
            self.tuner.backward(self, module, choices, (inputs, grad, kept_grads, tensors), named)
        return first_accepted(choices, launch)

    def _planner(
        self, dims: Dims, types_of: Mapping[str, str], *, huge: bool = False
    ) -> Planner | None:
        """What lists the tiles of calls with captured tensors of these types; None where kernels find them.

        ``huge``: some number of the call is; sums that runs of tiles are found by might overflow.
        """
        signature = self.sources.signature
        if not signature.masked or (signature.runs and not huge):
            return None
        plan, module = self.sources.plan(dims, types_of)
        planner = self._planners.get(module)
        if planner is None:
            planner = self._planners[module] = Planner(module, plan)
        return planner

    def _backward_tilings(
        self, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, wanted: frozenset[str]
    ) -> _Pair:
        """The choices for the two kernels of a backward, kept for calls of the same shapes."""
        if self.tiling is not None:
            return ("rows", choices_of([self.tiling], q)), ("columns", choices_of([self.tiling], q))
        if "rows" in self.fixed:
            rows, columns = (choices_of([self.fixed[kind]], q) for kind in ("rows", "columns"))
            return ("rows", rows), ("columns", columns)
        key = (
            *(q.device, q.shape, q.stride(), q.dtype, k.shape, k.stride(), v.shape, v.stride()),
            *(grad.stride(), wanted),
        )
        known = self._gradient_sites.get(key)
        if known is not None:
            return known

        def chosen(kind: Kind) -> tuple[Kind, Tilings]:
            def listed(target: Target) -> Sequence[Config]:
                return self.sources.configs(kind, target, _dims(q, v), wanted)

            return kind, tilings(listed, q, k, v, grad, shrinks=self._shrinks)

        made: _Pair = chosen("rows"), chosen("columns")
        if len(self._gradient_sites) >= _MOST_SITES:
            self._gradient_sites.clear()
        self._gradient_sites[key] = made
        return made

    def _lists(
        self,
        site: Site,
        tiling: Tiling,
        q: Tensor,
        captured: Sequence[Tensor],
        q_start: int,
        numbers: Sequence[float],
    ) -> TileLists | None:
        planner, signature = site.planner, self.sources.signature
        if planner is None and _huge(numbers):
            names = (t.name for t in self.kernels.signature.tensors)
            types = {n: str(x.dtype)[6:] for n, x in zip(names, captured, strict=True)}
            dims = INPUT_TYPES[q.dtype], q.shape[3], site.shape[3]
            planner = self._planner(dims, types, huge=True)
        if planner is None:
            return None
        return planner.lists(
            q.device,
            site.sizes,
            q_start,
            {name: x for (_, name), x in zip(signature.params, numbers, strict=True)},
            {name: x for (name, _), x in zip(signature.tensors, captured, strict=True)},
            (tiling.block_m, tiling.block_n),
        )

    def _site(
        self, q: Tensor, k: Tensor, v: Tensor, captured: Sequence[Tensor], q_start: int
    ) -> Site:
        key: tuple[object, ...] = (
            *(q.device, q.shape, q.stride(), q.dtype, k.device, k.shape, k.stride(), k.dtype),
            *(v.device, v.shape, v.stride(), v.dtype),
        )
        for x in captured:
            key += (x.shape, x.stride(), x.dtype, x.device)
        site = self._sites.get(key)
        if site is None:
            site = self._checked(q, k, v, captured, q_start)
            if len(self._sites) >= _MOST_SITES:
                self._sites.clear()
            self._sites[key] = site
        elif not 0 <= q_start <= site.last_start:
            check_inputs(q, k, v, q_start)
        return site

    def _checked(
        self, q: Tensor, k: Tensor, v: Tensor, captured: Sequence[Tensor], q_start: int
    ) -> Site:
        check_inputs(q, k, v, q_start)
        if q.dtype == torch.float64:
            raise DtypeError(
                name="q",
                detail=f"the {self.backend} backend computes in float32, float64 is not supported",
                fix='convert to float32, or call it on the CPU with kernels of backend="cpp"',
            )
        if q.dtype in EIGHT_BITS and self.sources.no_eight_bits:
            refuse_eight_bits(self.sources.no_eight_bits)
        target = _eight_bit_target(q)
        if target is not None and (why := target.lacks(EIGHT_BITS[q.dtype])):
            refuse_eight_bits(why)
        tensors = self.kernels.signature.tensors
        types = check_tensors(self.kernels.name, tensors, captured, sizes_of(q, v), q.device)
        types_of = dict(zip((t.name for t in tensors), types, strict=True))
        dims = _dims(q, v)
        return Site(
            self.sources.forward(dims, types_of),
            choices_of([tiling], q)
            if (tiling := self.tiling or self.fixed.get("forward"))
            else tilings(
                lambda t: self.sources.configs("forward", t, dims), q, k, v, shrinks=self._shrinks
            ),
            (*q.shape[:3], v.shape[3]),
            LARGEST_POSITION - q.shape[2],
            any(x.numel() == 0 for x in captured),
            Sizes.of(q, k),
            self._planner(dims, types_of),
            target is not None and target.narrow_sums,
        )


def _dims(q: Tensor, v: Tensor) -> Dims:
    return INPUT_TYPES[q.dtype], q.shape[3], v.shape[3]


def _eight_bit_target(q: Tensor) -> Target | None:
    """Who multiplies 8-bit inputs; None for others, and where an interpreter does."""
    return choice_of(q.device).target if q.dtype in EIGHT_BITS and q.is_cuda else None


def _huge(numbers: Iterable[float]) -> bool:
    """Whether an integer among the numbers of a call does not fit 32 bits."""
    return any(isinstance(x, int) and abs(x) >= 2**31 for x in numbers)


def _allows_tf32(q: Tensor) -> bool:
    """Whether torch may multiply float32 in less than full precision on the device of q, so that we may too."""
    return q.is_cuda and torch.backends.cuda.matmul.allow_tf32
