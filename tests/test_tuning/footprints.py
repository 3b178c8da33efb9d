"""Turns a few numbers into what looks like a compiled kernel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Print:
    registers: int
    shared: int = 0
    num_warps: int = 4
    tensor_memory: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    warnings: tuple[str, ...] = ()
