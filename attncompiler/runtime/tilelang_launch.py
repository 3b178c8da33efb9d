"""Launches generated TileLang kernels: makes a kernel for the constants of a call, and gives it tensors and numbers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attncompiler.runtime.call_checks import ELEMENT_TYPES
from attncompiler.runtime.triton_launch import (
    NO_LISTS,
    Signature,
    TileLists,
    Tiling,
    is_long,
    numbers,
    on_device,
    programs,
)

_LOCK = threading.RLock()
_KERNELS: dict[tuple[object, ...], Any] = {}
# One element, for arguments that a call leaves out.
_EMPTY: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def width_of(dim: int) -> int:
    """The features that a tile of a head has room for: what matrix instructions and swizzled rows want."""
    unit = 16 if dim <= 64 else 64
    return -(-dim // unit) * unit


def run(
    module: ModuleType,
    factory: str,
    constants: Mapping[str, Any],
    values: Mapping[str, Any],
    device: torch.device,
) -> None:
    """Launch the kernel that a module's ``factory`` makes for these constants, with arguments by name."""
    serial = bool(constants["SERIAL"])
    key = module.__name__, factory, device, *constants.values()
    kernel = _KERNELS.get(key)
    if kernel is None:
        with _LOCK:
            kernel = _KERNELS.get(key)
            if kernel is None:
                make = _serial if serial else _compiled
                kernel = _KERNELS[key] = make(module, factory, constants)
    kernel(values)


def _serial(module: ModuleType, factory: str, constants: Mapping[str, Any]) -> Any:
    from attncompiler.runtime.tilelang_serial import build

    assert module.__file__ is not None
    with open(module.__file__, encoding="utf-8") as file:
        source = f"{file.read()}\n{factory} {sorted(constants.items())}"
    return build(module.__name__.split(".")[-1], lambda: getattr(module, factory)(**constants), _order(module, factory), source)


def _compiled(module: ModuleType, factory: str, constants: Mapping[str, Any]) -> Any:
    """The kernel for the current device; TileLang keeps what it compiled."""
    import tilelang

    made = getattr(module, factory)(**constants)
    kernel = tilelang.compile(made, pass_configs=pass_configs())
    order = _order(module, factory)

    def call(values: Mapping[str, Any]) -> None:
        kernel(*(values[n] for n in order))

    return call


def _order(module: ModuleType, factory: str) -> list[str]:
    order: list[str] = getattr(module, f"{factory.upper()}_ARGUMENTS")
    return order


def pass_configs() -> dict[str, Any]:
    """How TileLang compiles our kernels: denormals are 0, so that an exponential is one instruction."""
    import tilelang

    return {tilelang.PassConfigKey.TL_DEVICE_COMPILE_FLAGS: ["-ftz=true"]}


def empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of one element, for an argument that a kernel does not touch."""
    key = like.device, dtype
    found = _EMPTY.get(key)
    if found is None:
        found = _EMPTY[key] = torch.zeros(1, dtype=dtype, device=like.device)
    return found


def flat(x: Tensor) -> Tensor:
    """The memory of a tensor from its first element to its last, as one axis; truth values are bytes."""
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    memory = x.as_strided((span,), (1,))
    return memory.view(torch.uint8) if x.dtype == torch.bool else memory


def captured(names: Sequence[tuple[str, int]], tensors: Sequence[Tensor]) -> dict[str, Any]:
    """The arguments of captured tensors."""
    found: dict[str, Any] = {}
    for (name, rank), x in zip(names, tensors, strict=True):
        found[name] = flat(x)
        for axis in range(rank):
            found[f"{name}_stride{axis}"] = x.stride(axis)
            found[f"{name}_extent{axis}"] = x.shape[axis]
    return found


def constants_of(
    tiling: Tiling, q: Tensor, v: Tensor, scale: float, *, listed: bool, long: bool
) -> dict[str, Any]:
    """What all kernels of a call are made for."""
    head_dim, value_dim = q.shape[3], v.shape[3]
    return {
        "dtype": ELEMENT_TYPES[q.dtype], "HEAD_DIM": head_dim, "VALUE_DIM": value_dim,
        "HEAD_WIDTH": width_of(head_dim), "VALUE_WIDTH": width_of(value_dim),
        "BLOCK_M": tiling.block_m, "BLOCK_N": tiling.block_n,
        "STAGES": tiling.num_stages, "THREADS": tiling.num_warps * 32,
        "LISTED": listed, "POSITIVE": scale > 0, "LONG": long, "SERIAL": not q.is_cuda,
    }  # fmt: skip


def list_arguments(lists: TileLists | None, like: Tensor) -> dict[str, Any]:
    """The arguments by which tiles are listed."""
    if lists is None:
        found = NO_LISTS | {"tile_lists": empty(like, torch.int32), "block_order": empty(like, torch.int32)}
    else:
        found = lists.arguments()
        found |= {n: found[n].view(-1) for n in ("tile_lists", "block_order")}
    return found


def run_forward(
    module: ModuleType,
    signature: Signature,
    tiling: Tiling,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    *,
    q_start: int,
    scale: float,
    params: Sequence[float],
    tensors: Sequence[Tensor],
    kept: Tensor | None,
    saved: Mapping[str, Tensor],
    value: Tensor | None,
    lists: TileLists | None,
    allow_tf32: bool = False,
) -> None:
    """Fill ``out`` [B, H, M, Dv] and what else is given, as ``triton_launch.run_forward`` does."""
    batch, heads, queries = q.shape[:3]
    if 0 in (batch, heads, queries):
        return
    programs(-(-queries // tiling.block_m), heads, batch)
    names = tuple(n for n in signature.stats if n in saved)
    stats = torch.stack([saved[n] for n in names]) if names else empty(q, torch.float32)
    constants = constants_of(
        tiling, q, v, scale, listed=lists is not None, long=is_long((q, k, v, *tensors))
    ) | {
        "WIDEN": q.dtype == torch.float16, "SAVED": names, "KEPT": kept is not None,
        "VALUES": value is not None, "PANEL": 0,
    }  # fmt: skip
    found = list_arguments(lists, q)
    values: dict[str, Any] = {
        "q": q, "k": k, "v": v, "out": out, "saved": stats.view(-1),
        "kept": (empty(q, torch.float32) if kept is None else kept).view(-1),
        "values": (empty(q, torch.float32) if value is None else value).view(-1),
        **found, **captured(signature.tensors, tensors), **numbers(signature.params, params),
        "q_start": q_start, "scale": scale,
    }  # fmt: skip
    with on_device(q):
        run(module, "forward", constants, values, q.device)
    for i, name in enumerate(names):
        saved[name].copy_(stats[i])
