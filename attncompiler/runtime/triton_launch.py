"""Launches generated Triton kernels: turns tensors and numbers of a checked call into one launch on the current stream.

Nothing here knows a variant: a kernel is described by a Signature, and its file holds all the mathematics.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from attncompiler.backends.tile_config import Kind, most_registers
from attncompiler.errors import InternalError
from attncompiler.runtime.errors import LimitError

# A tensor whose last element is further away than this is addressed by 64-bit offsets.
_SHORT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a kernel is cut: tile sides, warps of a program, stages of the software pipeline, tensor descriptors.

    ``persistent``: of a forward, at most so many programs are launched, and each takes one block after the other; 0
    launches one for each block. ``apart``: of a forward of TileLang on Hopper, a warp group loads for those that
    multiply, and products overlap with the elements of a tile; for rows that begin at multiples of 16 bytes. ``chunk``,
    ``raster`` and ``held`` are those of ``Config``: the first of the Triton kernels of a backward, the others of
    TileLang's kernels. ``told``: NVIDIA's assembler is told of all registers that a block of Triton's may use.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    persistent: int = 0
    apart: bool = False
    chunk: int = 0
    told: bool = False
    raster: int = 1
    held: bool = False


class Run(Protocol):
    """Launches a kernel of Triton, already bound to its grid, and notes what came of it: ``Trial.run``."""

    def __call__(self, kind: Kind, kernel: Callable[..., Any], /, **arguments: Any) -> None:
        """``kernel(**arguments)``."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a forward kernel takes beside q, k, v: numbers, tensors with their ranks, statistics that it can give.

    Numbers have the variant's name and that of the argument. ``masked``: not every pair is allowed. ``runs``: kernels
    find the tiles of their walks by themselves.
    """

    params: tuple[tuple[str, str], ...]
    tensors: tuple[tuple[str, int], ...]
    stats: tuple[str, ...]
    kept: int
    masked: bool
    runs: bool

    @property
    def listed(self) -> bool:
        """Whether a planning kernel lists the tiles."""
        return self.masked and not self.runs


@dataclass(frozen=True, slots=True)
class PlanSignature:
    """What a planning kernel takes; whether batches and heads differ; whether it may decide tiles pair by pair."""

    params: tuple[tuple[str, str], ...]
    tensors: tuple[tuple[str, int], ...]
    by_batch: bool
    by_head: bool
    exact: bool


@dataclass(frozen=True, slots=True)
class TileLists:
    """Full and partial tiles of every block of a walk, int32 ``[1 or B, 1 or H, blocks, 2, 1 + columns]``.

    A list begins with its length. ``order`` ``[1 or B, 1 or H, blocks]`` starts with the longest.
    """

    lists: Tensor
    order: Tensor

    def arguments(self) -> dict[str, Any]:
        """What kernels take of it."""
        batches, heads, blocks, _, width = self.lists.shape
        return {
            "tile_lists": self.lists,
            "block_order": self.order,
            "list_b": heads * blocks if batches > 1 else 0,
            "list_h": blocks if heads > 1 else 0,
            "columns": width - 1,
        }


NO_LISTS: dict[str, Any] = {
    "tile_lists": None,
    "block_order": None,
    "list_b": 0,
    "list_h": 0,
    "columns": 0,
}


def numbers(names: Sequence[tuple[str, str]], values: Sequence[float]) -> dict[str, float]:
    """Run-time numbers by the names of a kernel's arguments; truth values are 0 or 1."""
    return {
        argument: int(x) if isinstance(x, bool) else x
        for (_, argument), x in zip(names, values, strict=True)
    }


def width_of(dim: int, least: int = 16) -> int:
    """The features that a tile of a head has room for: a power of two, at least 16."""
    return max(least, 1 << (dim - 1).bit_length())


def width_of_keys(k: Tensor) -> int:
    """The same of queries and keys, of which a matrix instruction takes 32 bytes."""
    return width_of(k.shape[3], 32 if k.element_size() == 1 else 16)


def precision_of(dtype: torch.dtype, allow_tf32: bool) -> str:
    """How float32 products are computed; smaller types know one way."""
    return "tf32" if allow_tf32 and dtype == torch.float32 else "ieee"


def widened(dtype: torch.dtype) -> str:
    """How weights that float16 may not hold are multiplied: as tf32, whose fraction is as long; AMD has float32."""
    if dtype != torch.float16:
        return ""
    return "ieee" if torch.version.hip else "tf32"


def strides(**tensors: Tensor) -> dict[str, int]:
    """The strides of tensors [batch, heads, length, features], by the names of a kernel's arguments."""
    return {
        f"stride_{name}{axis}": stride
        for name, x in tensors.items()
        for axis, stride in zip("bhn" if name in "kv" else "bhm", x.stride()[:3], strict=True)
    }


def programs(blocks: int, heads: int, batches: int) -> tuple[int]:
    """The grid of a launch, a program for each block; LimitError where a device cannot count so far."""
    count = blocks * heads * batches
    if count > _SHORT:
        raise LimitError(
            name="the number of blocks of all heads and batches",
            value=count,
            limit=f"a launch has at most {_SHORT} programs",
            fix="split the batch",
        )
    return (count,)


def is_long(tensors: Sequence[Tensor]) -> bool:
    """Whether an offset inside a head or a captured tensor may not fit 32 bits."""
    return any(
        sum((n - 1) * abs(s) for n, s in zip(x.shape, x.stride(), strict=True)) > _SHORT
        for x in tensors
        if x.numel()
    )


def captured_arguments(
    names: Sequence[tuple[str, int]], tensors: Sequence[Tensor]
) -> dict[str, Any]:
    """Pointers, strides and extents of captured tensors, by the names of a kernel's arguments."""
    found: dict[str, Any] = {}
    for (name, rank), x in zip(names, tensors, strict=True):
        found[name] = x
        for axis in range(rank):
            found[f"{name}_stride{axis}"] = x.stride(axis)
            found[f"{name}_extent{axis}"] = x.shape[axis]
    return found


def run_forward(
    run: Run,
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
    as_float16: bool = False,
) -> None:
    """Fill ``out`` [B, H, M, Dv] and what else is given. All checks have been made by the caller.
    ``kept`` [n, B, H, M], ``saved`` [B, H, M] by the name of the statistic and ``value`` [B, H, M, Dv] are float32.
    ``as_float16``: 8-bit queries and keys are multiplied as float16.
    """
    batch, heads, queries, head_dim = q.shape
    groups, keys, value_dim = k.shape[1], k.shape[2], v.shape[3]
    if 0 in (batch, heads, queries):
        return
    arguments: dict[str, Any] = {
        "q_pointer": q, "k_pointer": k, "v_pointer": v, "out_pointer": out,
        "kept_pointer": kept, "value_pointer": value,
        **{f"save_{name}": saved.get(name) for name in signature.stats},
        **strides(q=q, k=k, v=v, o=out),
        "B": batch, "H": heads, "G": groups, "M": queries, "N": keys,
        "q_start": q_start, "scale": scale,
        **numbers(signature.params, params),
        **captured_arguments(signature.tensors, tensors),
        **(NO_LISTS if lists is None else lists.arguments()),
        "HEAD_DIM": head_dim, "VALUE_DIM": value_dim,
        "HEAD_WIDTH": width_of_keys(k), "VALUE_WIDTH": width_of(value_dim),
        "BLOCK_M": tiling.block_m, "BLOCK_N": tiling.block_n,
        "LISTED": lists is not None, "DESCRIPTORS": tiling.descriptors,
        "POSITIVE": scale > 0, "PRECISION": precision_of(q.dtype, allow_tf32),
        "WIDEN": widened(q.dtype), "AS_FLOAT16": as_float16, "LONG": is_long((q, k, v, *tensors)),
        "REVERSED": module.REVERSED, "PERSISTENT": tiling.persistent > 0,
    }  # fmt: skip
    grid = programs(-(-queries // tiling.block_m), heads, batch)
    if tiling.persistent:
        grid = (min(tiling.persistent, *grid),)
    arguments |= of_tilelang(tiling, module)
    with on_device(q, workspace=tiling.descriptors):
        run(
            "forward",
            module.forward[grid],
            **arguments,
            **block_options(tiling),
            enable_fp_fusion=True,  # a multiply-add an element: newer compilers fuse only when asked
        )


def of_tilelang(tiling: Tiling, module: ModuleType) -> dict[str, Any]:
    """What a tiling asks for that only TileLang's kernels have. Raises InternalError where it asks Triton's."""
    asked = {"APART": tiling.apart, "HELD": tiling.held}
    found: dict[str, Any] = {name: True for name, wanted in asked.items() if wanted}
    if tiling.raster != 1:
        found["raster"] = tiling.raster
    if found and not getattr(module, "TILELANG", False):
        raise InternalError("triton launch", f"no kernel of Triton knows {', '.join(found)}")
    return found


def block_options(tiling: Tiling) -> dict[str, int]:
    """What the compiler is told about a block of a kernel."""
    found = {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages}
    if tiling.told:
        found["maxnreg"] = most_registers(tiling.num_warps)
    return found


def on_device(x: Tensor, *, workspace: bool = False) -> Any:
    """The device of a tensor as the current one; its current stream is where kernels are launched.

    ``workspace``: kernels build tensor descriptors, in memory that torch gives. Triton keeps the allocator for one
    thread, and autograd has threads of its own. Kernels of others need no Triton, which is imported where its own are.
    """
    if not x.is_cuda:
        return contextlib.nullcontext()
    if workspace and (triton := sys.modules.get("triton")) is not None:
        triton.set_allocator(_allocated)
    return torch.cuda.device(x.device)


def _allocated(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory on the current device, which the caching allocator aligns to 512 bytes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
