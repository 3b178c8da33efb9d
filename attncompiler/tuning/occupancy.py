"""Turns what a kernel takes into how many of its blocks an SM holds, what stops more, and reasons to drop it.

Granules of allocation are those of NVIDIA's occupancy calculator for compute capability 8.0 and later, and of CDNA 2
and later: registers go to whole warps, on the quarter of the SM that the warp lives on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from attncompiler.backends.gpu_targets import Target

# An SM of Blackwell has this many columns of tensor memory.
TENSOR_COLUMNS = 512
_QUARTERS = 4


class Footprint(Protocol):
    """What of a compiled kernel decides where it fits; ``attncompiler.runtime.offline.Built`` is one."""

    @property
    def registers(self) -> int:
        """Registers a thread."""

    @property
    def shared(self) -> int:
        """Bytes of shared memory a block."""

    @property
    def tensor_memory(self) -> int:
        """Columns of tensor memory a block."""

    @property
    def num_warps(self) -> int:
        """Warps a block."""


class Report(Footprint, Protocol):
    """A footprint and what the compiler had to give up."""

    @property
    def spill_stores(self) -> int:
        """Bytes a thread writes to its stack for want of registers."""

    @property
    def spill_loads(self) -> int:
        """Bytes it reads back."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """The assembler's messages about serialised tensor instructions."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Blocks an SM holds at a time, the share of its warps they are, and what runs out first.

    ``limiter`` is "warps", "blocks", "registers", "shared memory" or "tensor memory"; on a tie the first of these.
    """

    blocks: int
    fraction: float
    limiter: str


def occupancy(built: Footprint, target: Target) -> Occupancy:
    """How many blocks of a kernel an SM of ``target`` holds; 0 where one block already does not fit."""
    limits = {"warps": target.max_warps // built.num_warps, "blocks": target.max_blocks}
    limits["registers"] = _warps_by_registers(built.registers, target) // built.num_warps
    if shared := _shared(built.shared, target):
        limits["shared memory"] = target.shared_per_sm // shared
    if built.tensor_memory:
        limits["tensor memory"] = TENSOR_COLUMNS // built.tensor_memory
    limiter = min(limits, key=lambda name: limits[name])
    blocks = limits[limiter]
    return Occupancy(blocks, blocks * built.num_warps / target.max_warps, limiter)


def problems(built: Report, target: Target) -> tuple[str, ...]:
    """Reasons to drop a configuration, each a short phrase; empty for one that is worth timing."""
    found = []
    if built.spill_stores or built.spill_loads:
        found.append(
            f"spills ({built.spill_stores} B stored, {built.spill_loads} B loaded a thread)"
        )
    found.extend(too_much_shared(built.shared, target))
    if built.tensor_memory > TENSOR_COLUMNS:
        found.append(f"tensor memory ({built.tensor_memory} columns of {TENSOR_COLUMNS})")
    if built.num_warps > _warps_by_registers(built.registers, target):
        taken = built.registers * built.num_warps * target.warp_size
        found.append(f"register file ({taken} registers of {target.registers})")
    if built.warnings:
        found.append(f"serialised tensor instructions ({built.warnings[0]})")
    return tuple(found)


def too_much_shared(shared: int, target: Target) -> tuple[str, ...]:
    """A reason to drop a block of so many bytes of shared memory where the target has less."""
    if shared <= target.shared_per_block:
        return ()
    return (f"shared memory ({shared} B of {target.shared_per_block} B)",)


def _warps_by_registers(registers: int, target: Target) -> int:
    """Warps of which an SM holds the registers: they come in granules, from a quarter of the file each."""
    if target.is_nvidia:
        quarter, warp = target.registers // _QUARTERS, _granules(registers * 32, 256)
    else:
        quarter, warp = target.max_registers, _granules(registers, 8)  # counted by lane
    return _QUARTERS * min(quarter // max(warp, 1), target.max_warps // _QUARTERS)


def _shared(wanted: int, target: Target) -> int:
    """Bytes of shared memory a block really occupies: NVIDIA's system takes a KiB of each."""
    if target.is_nvidia:
        return _granules(wanted, 128) + 1024
    return _granules(wanted, 1280 if target.name == "gfx950" else 512)


def _granules(amount: int, granule: int) -> int:
    return -(-amount // granule) * granule
