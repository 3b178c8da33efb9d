"""Lists the GPU kernels of a compilation for a type of inputs: their files, and what they are compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from attncompiler.backends.gpu_targets import EIGHT_BITS, Target
from attncompiler.backends.names import identifier, tensor_name
from attncompiler.backends.tile_config import most_registers
from attncompiler.backends.tilelang_configs import configs as tilelang_configs
from attncompiler.backends.tilelang_options import options
from attncompiler.backends.triton_backward_parts import folded
from attncompiler.backends.triton_configs import Config, Kind, candidates, configs
from attncompiler.backends.triton_work import (
    Extra,
    PairWork,
    backward_extra,
    backward_work,
    forward_extra,
    forward_work,
)
from attncompiler.ir.program import ParamDecl
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.offline_records import KernelRequest, Language
from attncompiler.runtime.tilelang_file import read_file
from attncompiler.runtime.tilelang_requests import backward_usages, forward_usages, tilelang_request
from attncompiler.runtime.tilelang_sources import TilelangSources
from attncompiler.runtime.triton_requests import Call, request
from attncompiler.runtime.triton_sources import TritonSources, stored

_BACKWARDS: tuple[Literal["rows"], Literal["columns"]] = ("rows", "columns")


@dataclass(frozen=True, slots=True, eq=False)
class GpuKernel:
    """One kernel of a variant for one type of inputs: its file, what a call gives it, its work, what it keeps."""

    kind: Kind
    source: Path
    call: Call
    work: PairWork
    extra: Extra

    @property
    def language(self) -> Language:
        """What the file is written in."""
        return "triton"

    def configs(self, target: Target) -> tuple[Config, ...]:
        """The configurations that a call on a target tries, the best guess first."""
        call = self.call
        return configs(self.kind, target, call.dtype, call.head_dim, call.value_dim, self.extra)

    def candidates(self, target: Target) -> tuple[Config, ...]:
        """The same, and those whose registers are in doubt."""
        call = self.call
        return candidates(self.kind, target, call.dtype, call.head_dim, call.value_dim, self.extra)

    def request(self, target: Target, config: Config) -> KernelRequest:
        """What the offline compiler takes for one of them."""
        found = request(self.source, self.kind, _on(target, self.call), config)
        return (
            replace(found, registers=most_registers(config.num_warps))
            if target.is_nvidia
            else found
        )


class TilelangKernel(GpuKernel):
    """The same in TileLang, which has lists of configurations of its own."""

    @property
    def language(self) -> Language:
        """What the file is written in."""
        return "tilelang"

    def configs(self, target: Target) -> tuple[Config, ...]:
        """The configurations that a call on a target tries, the best guess first."""
        call = self.call
        dims = call.head_dim, call.value_dim
        return tilelang_configs(self.kind, target, call.dtype, *dims, self.extra)

    def candidates(self, target: Target) -> tuple[Config, ...]:
        """The same, and the other ways that tuning tries, but for those that run the same kernel."""
        plain = self.configs(target)
        file = read_file(self.source.read_text(encoding="utf-8"))
        found = (*plain, *options(self.kind, target, plain, apart=file.apart(self.call.dtype)))
        return tuple(dict.fromkeys(c.alike for c in found))

    def request(self, target: Target, config: Config) -> KernelRequest:
        """What the offline compiler takes for one of them."""
        return tilelang_request(self.source, self.kind, self.call, config, target)


_PRINTED: dict[Language, tuple[type[TritonSources], type[GpuKernel]]] = {
    "triton": (TritonSources, GpuKernel),
    "tilelang": (TilelangSources, TilelangKernel),
}


@dataclass(frozen=True, slots=True)
class PlanKernel:
    """The kernel that lists the tiles of a mask; its tiles are those of the kernel that walks over the lists."""

    source: Path
    call: Call

    def request(self, config: Config, *, transposed: bool) -> KernelRequest:
        """Compile it for the tiles of ``config``; ``transposed``: lists for blocks of keys."""
        found = request(self.source, "plan", self.call, config)
        return replace(found, constexprs={**found.constexprs, "TRANSPOSED": transposed})


@dataclass(frozen=True, slots=True)
class GpuKernels:
    """All kernels of a compilation for one type of inputs; ``plan`` where a mask's tiles come from lists."""

    kernels: tuple[GpuKernel, ...]
    plan: PlanKernel | None


def gpu_kernels(
    kernels: Kernels,
    types: Mapping[str, str],
    dims: tuple[str, int, int],
    *,
    backward: bool = False,
    language: Language = "triton",
) -> GpuKernels:
    """The kernels for inputs of ``dims``: element type, head_dim, value_dim.

    ``types`` are those of captured tensors by their name in the variant. With ``backward`` the two kernels of the
    gradients too, and a forward that keeps what they read. Tiles are listed by a kernel of Triton in any case.
    """
    printer, made = _PRINTED[language]
    sources = printer(kernels)
    listed = sources.signature.listed
    wanted = kernels.learns if backward else frozenset[str]()
    loops = kernels.loops(wanted) if backward else None
    call = Call(
        *dims,
        tensors={tensor_name(n): t for n, t in types.items()},
        params=_params(kernels.kernel.params, loops.params if loops else ()),
        listed=listed,
        trains=backward,
    )
    stem = kernels.name.lower()
    file = sources.forward_source([types[t.name] for t in kernels.kernel.tensors])
    path = stored(f"{stem}_forward", file)
    kernel = kernels.kernel
    usual = forward_usages(kernels, sources.signature, call.dtype, trains=backward)[0]
    found = [made("forward", path, usual.of(call), forward_work(kernel), forward_extra(kernel))]
    if loops is not None:
        printed = folded(loops)
        file = sources.backward_source(wanted, [types[t.name] for t in loops.tensors])
        path = stored(f"{stem}_backward", file)
        for kind in _BACKWARDS:
            work, extra = backward_work(printed, kind), backward_extra(printed, kind)
            usual = backward_usages(sources.backward_signature(wanted), kind)[0]
            found.append(made(kind, path, usual.of(call), work, extra))
    if not listed:
        return GpuKernels(tuple(found), None)
    plan = kernels.compilation.tile_plan
    file = sources.plan_source([types[t.name] for t in plan.tensors])
    call = replace(call, params=_params(plan.params))
    return GpuKernels(tuple(found), PlanKernel(stored(f"{stem}_tiles", file), call))


def _params(*groups: tuple[ParamDecl, ...]) -> dict[str, str]:
    return {f"p_{identifier(p.name)}": p.kind for params in groups for p in params}


def _on(target: Target, call: Call) -> Call:
    """The call as this target runs it.

    Weights that float16 may not hold are multiplied as tf32, which AMD does not have. 8-bit floats are multiplied as
    float16, exactly, where their own products would be added up in few bits.
    """
    if call.dtype in EIGHT_BITS:
        return replace(call, as_float16=target.narrow_sums)
    if call.dtype != "float16":
        return call
    return replace(call, widen="tf32" if target.is_nvidia else "ieee")
