"""Turns the work of a C++ kernel and a schedule into a predicted time on a CPU, and what bounds it.

The model ranks schedules and says what a kernel's time goes to; it does not promise. Products run at the rate of the
CPU's own matrix products, less what a schedule loses: registers that are not filled, keys and features that are no
multiple of what registers hold, sums that are loaded and stored again at each tile, blocks that fall out of the
second-level cache. Formulas take the vectors' rate. A tile that straddles the edge of a mask is computed whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from attncompiler.backends.cpp_context import REAL_BYTES
from attncompiler.backends.cpp_cut import Kind, Schedule
from attncompiler.backends.triton_work import PairWork
from attncompiler.runtime.tile_tables import Sizes
from attncompiler.tuning.cpu_device import CpuDevice

Bound = Literal["compute", "bandwidth", "exponentials", "launch"]

_ELEMENT_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
# An exponential by a polynomial takes so many operations of a vector.
_EXPONENTIAL = 9
# Operations of a vector before and after a block of products: addresses, stores.
_AROUND = 8
# Sums in flight that hide the latency of a multiply-add; registers of vectors.
_IN_FLIGHT, _REGISTERS = 8, {64: 32, 32: 16, 16: 16}
_USUAL_READS = 1.5  # operands that are multiplied and loaded for a multiply-add, of a good shape
_SPILLS = 1.5  # the price of more sums than registers
_NEAR = 0.05  # multiply-adds for a byte that comes from the second-level cache
_FAR = 0.12  # operations of a vector for a byte a lane that comes from the third-level cache
_TILE = 0.2  # operations of a vector for a byte of keys and values, which come from there or from memory
_LAUNCH = 8e-6  # seconds


@dataclass(frozen=True, slots=True)
class Load:
    """A kernel and a call. ``visited(rows, keys)`` is the share of pairs in tiles of that size that are not empty."""

    kind: Kind
    dtype: str
    sizes: Sizes
    head_dim: int
    value_dim: int
    pair: PairWork
    visited: Callable[[int, int], float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of a call, what most of them go to, and the call's least work.

    ``flops`` are those of matrix products of allowed tiles, ``bytes`` every operand and result once, ``exponentials``
    count elements. ``roof`` are the seconds that the CPU's peaks would take for these flops or these bytes.
    """

    seconds: float
    bound: Bound
    flops: float
    bytes: float
    exponentials: float
    roof: float


def estimate(load: Load, cut: Schedule, device: CpuDevice) -> Estimate:
    """The time of a call whose kernel is cut in this way."""
    lanes = device.vector // REAL_BYTES[load.dtype]
    sizes = load.sizes
    rows = cut.rows * lanes
    pairs = sizes.batch * sizes.heads * sizes.queries * sizes.keys
    share = load.visited(rows, cut.tile)
    dims = load.pair.head_products * load.head_dim + load.pair.value_products * load.value_dim
    flops = 2.0 * pairs * share * dims
    products = flops / device.flops * _products(load, cut, device)
    visits = pairs * share / (rows * cut.tile)
    # Operations of vectors, in seconds: a multiply-add counts as two flops of each lane.
    operation = 2.0 * lanes / device.lane_flops
    element = pairs * share / lanes * operation
    exponentials = element * load.pair.exponentials * _EXPONENTIAL
    elements = element * load.pair.operations
    moved = visits * _around_a_visit(load, cut, device) * operation
    prepared = visits * _prepared(load, cut, lanes) / _sharing(load, cut, device, rows) * operation
    busy = (products + exponentials + elements + moved + prepared) * _waiting(
        load, cut, device, rows
    )
    size = float(_bytes(load))
    memory = size / device.bandwidth
    seconds = max(busy, memory) + _LAUNCH
    return Estimate(
        seconds=seconds,
        bound=_bound(seconds, memory, busy, products, exponentials),
        flops=flops,
        bytes=size,
        exponentials=pairs * share * load.pair.exponentials,
        roof=max(flops / device.flops, memory),
    )


def _products(load: Load, cut: Schedule, device: CpuDevice) -> float:
    """By how much products are slower than they could be."""
    if cut.machine == "matrix":
        return 1.0 + 16.0 / cut.tile
    sums, real = cut.vectors * cut.keys, REAL_BYTES[load.dtype]
    # Loads share the machine with multiply-adds: of two shapes with as many sums the squarer one has fewer.
    reads = (1.0 + (cut.vectors + cut.keys) / sums) / _USUAL_READS
    short = _IN_FLIGHT / sums
    spills = _SPILLS if sums + cut.vectors + 1 > _REGISTERS[device.vector] else 1.0
    around = 1.0 + (sums + _AROUND) / (sums * load.head_dim)
    tail = math.ceil(cut.tile / cut.keys) * cut.keys / cut.tile
    # Keys that the first cache has no room for are read again by every few vectors of rows.
    far = min(max(cut.tile * load.head_dim * real / device.l1 - 0.5, 0.0), 1.0)
    return max(reads, short) * spills * around * tail + _NEAR * far * real / cut.vectors


def _around_a_visit(load: Load, cut: Schedule, device: CpuDevice) -> float:
    """Operations of vectors for what a block loads and stores again at each tile."""
    sums = load.pair.value_products * load.value_dim
    lines = cut.rows * 2.0 * sums
    real = REAL_BYTES[load.dtype]
    block = cut.rows * device.vector * (load.head_dim + sums + 2 * cut.tile)
    keys = cut.tile * (load.head_dim + load.value_dim) * real * cut.slots
    if cut.blocks * block + keys > device.l2:
        lines += _FAR * device.vector * cut.rows * (load.head_dim + sums) / 4
    return lines


def _prepared(load: Load, cut: Schedule, lanes: int) -> float:
    """Operations of vectors that read the keys and values of a tile from afar and copy or convert them."""
    copied = 0 if load.dtype in ("float32", "float64") and cut.machine != "matrix" else 2
    numbers = cut.tile * (load.head_dim + load.value_dim)
    return numbers * (copied / lanes + _TILE * _ELEMENT_BYTES[load.dtype])


def _sharing(load: Load, cut: Schedule, device: CpuDevice, rows: int) -> int:
    """Blocks that share a prepared tile."""
    sizes = load.sizes
    blocks = sizes.batch * sizes.heads * math.ceil(sizes.queries / rows)
    return max(1, min(cut.blocks, blocks // (device.threads * cut.tasks)))


def _waiting(load: Load, cut: Schedule, device: CpuDevice, rows: int) -> float:
    """By how much threads that wait for the last one lengthen a call."""
    sizes = load.sizes
    problems = sizes.batch * sizes.groups
    blocks = math.ceil(sizes.queries / rows) * max(sizes.heads // max(sizes.groups, 1), 1)
    tasks = problems * math.ceil(blocks / _sharing(load, cut, device, rows))
    threads = min(device.threads, max(tasks, 1))
    uneven = math.ceil(tasks / threads) * threads / tasks if tasks else 1.0
    return device.threads / threads * (1.0 + (uneven - 1.0) * 0.5)


def _bytes(load: Load) -> int:
    sizes, element = load.sizes, _ELEMENT_BYTES[load.dtype]
    queries = sizes.batch * sizes.heads * sizes.queries * (load.head_dim + load.value_dim)
    keys = sizes.batch * sizes.groups * sizes.keys * (load.head_dim + load.value_dim)
    return element * (queries + keys) * (1 if load.kind == "forward" else 2)


def _bound(
    seconds: float, memory: float, busy: float, products: float, exponentials: float
) -> Bound:
    if seconds < 2 * _LAUNCH:
        return "launch"
    if memory >= busy:
        return "bandwidth"
    return "exponentials" if exponentials > products else "compute"
