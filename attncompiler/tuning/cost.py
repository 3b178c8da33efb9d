"""Turns the work of an attention kernel into a predicted time on a target, and what bounds it.

The model ranks configurations, it does not promise: cycles add up as matrix products at 92% of the peak, plus the
softmax, of which a plain Triton loop hides a tenth behind them (element operations share issue slots, so half of them
count), plus a wait at each tile; the memory's time runs beside that. The constants come from published H100 forward
figures (480 and 403 TFLOP/s at 16384 keys of head dimension 128 and 64); other targets take them over untested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from attncompiler.backends.gpu_targets import EIGHT_BITS, Target
from attncompiler.backends.triton_work import SOFTMAX, PairWork
from attncompiler.tuning.occupancy import Footprint, occupancy

Bound = Literal["compute", "bandwidth", "exponentials", "launch"]
Kind = Literal["forward", "rows", "columns"]

_SUSTAINED = 0.93  # of the clock and of the memory's peak, under load
_PRODUCTS = 0.92  # of the tensor cores' peak, while they are fed
_FUSED = (
    0.5  # of the peak of float32 multiply-adds where products run on them; a guess, not measured
)
_HIDDEN = 0.10  # of the softmax, behind matrix products
_STEP_CYCLES, _BLOCK_CYCLES = 140, 1500  # waits of a tile; beginning and end of a block
_LAUNCH = 4e-6  # seconds
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2} | dict.fromkeys(EIGHT_BITS, 1)


@dataclass(frozen=True, slots=True)
class Work:
    """What one launch does in all: multiply-adds count as two ``flops``, ``bytes`` go to and from memory.

    ``exponentials`` and ``operations`` (other float32 instructions) count elements of score tiles; ``blocks`` is the
    grid, ``steps`` the tiles all blocks walk over; ``dtype`` is the inputs' element type, which says who multiplies.
    """

    flops: float
    bytes: float
    exponentials: float
    operations: float
    blocks: int
    steps: float = 0
    dtype: str = "bfloat16"


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of one launch and what most of them go to."""

    seconds: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class Attention:
    """The size of a call; ``density`` is the share of query-key pairs in tiles that are visited (causal: 0.5)."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    dtype: str = "bfloat16"
    density: float = 1.0


def attention_work(
    size: Attention,
    block_m: int,
    block_n: int,
    kind: Kind = "forward",
    pair: PairWork | None = None,
) -> Work:
    """The work of a forward kernel, or of the backward one that owns rows (dq) or columns (dk, dv).

    ``pair`` is what a kernel does at one pair, by default a softmax's: 3.5 operations forward (scale, maximum, sum,
    half a conversion). Memory counts every operand once: keys stay in the L2 cache while the blocks of a head pass.
    """
    rows, columns = size.batch * size.heads * size.queries, size.batch * size.heads * size.keys
    stored = size.batch * size.kv_heads * size.keys
    pairs = rows * size.keys * size.density
    steps = pairs / (block_m * block_n)
    d, v = size.head_dim, size.value_dim
    element = _ELEMENT_BYTES[size.dtype]
    pair = pair or SOFTMAX[kind]
    products = pair.head_products * d + pair.value_products * v
    rescaled = 0.0
    match kind:
        case "forward":
            # Of 8-bit floats the output has two bytes a number.
            moved = rows * (d + (2 * v if size.dtype in EIGHT_BITS else v)) + stored * (d + v)
            rescaled = steps * block_m * v * pair.value_products
        case "rows":
            moved = rows * (2 * d + v) + stored * (d + v)
        case "columns":
            moved = rows * (d + v) + stored * (d + v) + columns * (d + v)
    side, block = (size.keys, block_n) if kind == "columns" else (size.queries, block_m)
    return Work(
        flops=2 * pairs * products,
        bytes=element * moved + 4 * rows * (1 if kind == "forward" else 2),
        exponentials=pair.exponentials * pairs,
        operations=pair.operations * pairs + rescaled,
        blocks=size.batch * size.heads * math.ceil(side / block),
        steps=steps,
        dtype=size.dtype,
    )


def predict(work: Work, target: Target, built: Footprint) -> Prediction:
    """Seconds of a launch of ``built`` on the target's usual card, infinite where a block does not fit an SM.

    Waits are shared by the blocks an SM holds; an SM with one block more than the others is what all wait for.
    """
    resident = occupancy(built, target).blocks
    if not resident or not work.blocks:
        return Prediction(math.inf if work.blocks else _LAUNCH, "launch")
    cycles = target.sms * target.clock * 1e9 * _SUSTAINED
    if work.dtype == "float32":
        # AMD's matrix cores take float32, at the rate of its multiply-adds.
        reached = _FUSED if target.is_nvidia else _PRODUCTS
        products = work.flops / (2 * target.lanes * cycles * reached)
    else:
        products = work.flops / (target.tensor_tflops * 1e12 * _SUSTAINED * _PRODUCTS)
    exponentials = work.exponentials / (target.exponentials * cycles)
    elements = 0.5 * work.operations / (target.lanes * cycles)
    waits = (_STEP_CYCLES * work.steps + _BLOCK_CYCLES * work.blocks) / cycles / resident
    busy = products + (1 - _HIDDEN) * (exponentials + elements) + waits
    memory = work.bytes / (target.bandwidth * 1e9 * _SUSTAINED)
    fill = work.blocks / (math.ceil(work.blocks / target.sms) * target.sms)
    seconds = max(busy, memory) / fill
    return Prediction(seconds + _LAUNCH, _bound(seconds, busy, memory, products, exponentials))


def _bound(
    seconds: float, busy: float, memory: float, products: float, exponentials: float
) -> Bound:
    if seconds < _LAUNCH:
        return "launch"
    if memory >= busy:
        return "bandwidth"
    return "exponentials" if exponentials > products else "compute"
