"""Turns the TileLang files of a compilation into requests for the offline compiler: the constants a call would give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from attncompiler.backends.gpu_targets import Target
from attncompiler.backends.tile_config import Config, Kind, parted, tilelang_width
from attncompiler.errors import InternalError
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.offline_records import Constant, KernelRequest
from attncompiler.runtime.tilelang_file import read_file
from attncompiler.runtime.tilelang_launch import HOPPER_REGISTERS
from attncompiler.runtime.triton_backward import BackwardSignature
from attncompiler.runtime.triton_launch import Signature
from attncompiler.runtime.triton_requests import Call


def tilelang_request(
    source: Path, kernel: Kind, call: Call, config: Config, target: Target
) -> KernelRequest:
    """One kernel of a file for one call, configuration and target."""
    name = "groups" if config.apart else kernel
    taken = read_file(source.read_text(encoding="utf-8")).kernels[name]
    if config.held and "HELD" not in taken.constants:
        raise InternalError("tilelang request", f"the kernel {name} holds no rows in registers")
    hopper = target.name == "sm_90"
    registers = HOPPER_REGISTERS.get(config.num_warps // 4, 0) if config.descriptors else 0
    pointers = target.is_nvidia and not config.descriptors
    # Without TMA no warp group loads for the others.
    stages = config.num_stages if config.descriptors or not hopper else 1
    known: dict[str, Constant] = {
        "dtype": call.dtype, "HEAD_DIM": call.head_dim, "VALUE_DIM": call.value_dim,
        "HEAD_WIDTH": tilelang_width(call.head_dim, pointers=pointers),
        "VALUE_WIDTH": tilelang_width(call.value_dim, pointers=pointers),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "STAGES": stages,
        "THREADS": config.num_warps * target.warp_size, "LISTED": call.listed, "POSITIVE": True,
        "WIDEN": call.dtype == "float16",
        "LONG": False, "SERIAL": False, "PHASE": call.phase, "FUSED": call.fused, "ALONE": call.alone,
        "PARTED": parted(kernel, config.block_m, config.block_n, config.num_warps),
        "REGISTERS": registers if hopper else 0, "HELD": config.held,
        "GIVEN": tuple(name for name in taken.order if _given(name, call)),
    }  # fmt: skip
    constants = {name: known[name] for name in taken.constants}
    return KernelRequest(
        source, name, {}, constants, num_warps=config.num_warps, num_stages=config.num_stages,
        language="tilelang",
    )  # fmt: skip


def _given(name: str, call: Call) -> bool:
    """Whether a call has an argument; the others are not touched."""
    if name in ("tile_lists", "block_order"):
        return call.listed
    return not is_optional(name) or name in call.given


def is_optional(name: str) -> bool:
    """Whether some calls leave an argument out, besides lists of tiles.

    Those are what a forward may give beside its output, and what a backward reads only of some variants and calls.
    """
    return name in ("kept", "values", "go", "dq") or name.startswith(("save_", "grad_"))


@dataclass(frozen=True, slots=True)
class Usage:
    """What calls of one kernel differ in: see ``Call``."""

    given: frozenset[str] = frozenset()
    phase: int = 2
    alone: bool = True

    def of(self, call: Call) -> Call:
        """The call with it."""
        return replace(call, given=self.given, phase=self.phase, alone=self.alone)


def forward_usages(
    kernels: Kernels, signature: Signature, dtype: str, *, trains: bool
) -> list[Usage]:
    """Of the forward: for inference or for training, each without and with the statistics that a variant keeps."""
    saved = frozenset[str]()
    if trains:
        names = zip(kernels.signature.stats, signature.stats, strict=True)
        saved = frozenset(f"save_{argument}" for name, argument in names if name in kernels.saved)
        if kernels.saves_value(getattr(torch, dtype)):
            saved |= {"values"}
    return [Usage(saved), Usage(saved | {"kept"})] if kernels.signature.kept else [Usage(saved)]


def backward_usages(signature: BackwardSignature, kind: Kind) -> list[Usage]:
    """Of a kernel of the backward, for calls that want the gradient of q, and the same bits every time.

    Gradients of kept statistics are given all or none. The first of two phases measures what whole numbers count.
    """
    measured = [g for g in signature.grads if not g.stored]
    if kind == "rows":
        given = frozenset({"dq"})
        given |= {"go"} if signature.own_go else set()
        given |= {"values"} if signature.reads_value else set()
        kept = frozenset(argument for _, argument in signature.kept)
        sets = list(dict.fromkeys((given, given | kept)))
        return [Usage(g, phase) for g in sets for phase in ((2, 1) if measured else (2,))]
    late = any(g.by_columns for g in measured)
    return [
        Usage(frozenset({"go"}), phase, alone)
        for phase in ((2, 1) if late else (2,))
        for alone in (True, False)
    ]
