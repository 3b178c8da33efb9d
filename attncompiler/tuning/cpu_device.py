"""Describes the CPU that is here: its vectors and caches as the system tells them, its rates as measured once.

The peak of multiply-adds is that of PyTorch's own product of large matrices, the bandwidth that of a large copy: what a
well-tuned library reaches with all threads, not what a data sheet says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from attncompiler.backends.cpp_context import PIECES, REAL_BYTES
from attncompiler.backends.cpp_cut import Machine
from attncompiler.runtime.cache import content_key, entry
from attncompiler.runtime.toolchain import processor, tiles_are_lent

_SIDE, _COPY, _RUNS = 1024, 1 << 26, 5
# Instructions for products of narrow types, of x86 and of ARM.
_NARROW = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "fphp"},
}


@dataclass(frozen=True, slots=True)
class CpuDevice:
    """A CPU as a kernel of one element type sees it.

    ``vector`` is the bytes of a vector, ``l1`` and ``l2`` bytes of a core's data caches. ``flops`` are those of matrix
    products of the element type, ``lane_flops`` of ordinary vectors, a multiply-add counting as two, and ``bandwidth``
    bytes, each a second and of all ``threads`` together.
    """

    machine: Machine
    vector: int
    l1: int
    l2: int
    threads: int
    flops: float
    lane_flops: float
    bandwidth: float


def cpu_device(dtype: str) -> CpuDevice:
    """The CPU that is here, for kernels of an element type by name, with as many threads as torch uses."""
    machine = machine_for(dtype)
    rates = _rates()
    flops = rates[dtype]
    return CpuDevice(
        machine=machine,
        vector=64 if machine == "matrix" else int(machine),
        l1=_cache("SC_LEVEL1_DCACHE_SIZE", 32 << 10),
        l2=_cache("SC_LEVEL2_CACHE_SIZE", 512 << 10),
        threads=torch.get_num_threads(),
        flops=flops,
        lane_flops=rates["float64" if dtype == "float64" else "float32"],
        bandwidth=rates["bandwidth"],
    )


def machine_for(dtype: str) -> Machine:
    """The kind of processor that kernels of an element type are built for here."""
    flags = f" {processor()} "
    if " amx_bf16 " in flags and tiles_are_lent() and PIECES[dtype]:
        return "matrix"
    if " avx512f " in flags:
        return "64"
    return "32" if " avx " in flags else "16"


def _cache(name: str, otherwise: int) -> int:
    """Bytes of a cache; systems that do not tell get a usual size."""
    try:
        found = os.sysconf(name)
    except (AttributeError, ValueError, OSError):
        return otherwise
    return found if found > 0 else otherwise


def _rates() -> dict[str, float]:
    """Measured once for a processor, a number of threads and a version of torch; takes about a second."""

    def fill(folder: Path) -> None:
        (folder / "rates.json").write_text(json.dumps(measured_rates()), encoding="utf-8")

    threads = torch.get_num_threads()
    key = content_key(processor(), str(threads), torch.__version__, str(_SIDE))
    folder, _ = entry("cpu_rates", key, fill)
    found: dict[str, float] = json.loads((folder / "rates.json").read_text(encoding="utf-8"))
    return found


def measured_rates(dtypes: Collection[str] = tuple(REAL_BYTES)) -> dict[str, float]:
    """Flops a second of products by element type, and bytes a second of a copy as "bandwidth".

    Takes a tenth of a second for a type.
    """
    # 16-bit products without instructions for them take seconds, and would make a roof that kernels, which then
    # multiply in float32, break through.
    flags = frozenset(processor().split())
    found = {}
    for name in dtypes:
        own = name not in _NARROW or flags & _NARROW[name]
        rates = [_products(getattr(torch, name))] if own else []
        rates += [_products(torch.float32)] if name in _NARROW else []
        found[name] = max(rates)
    source = torch.ones(_COPY // 4)
    target = torch.empty_like(source)
    found["bandwidth"] = 2 * _COPY / _least(lambda: target.copy_(source))
    return found


def _products(dtype: torch.dtype) -> float:
    """Flops a second of a product of square matrices."""
    x = torch.randn(_SIDE, _SIDE).to(dtype)
    return 2 * _SIDE**3 / _least(lambda: x @ x)


def _least(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(_RUNS):
        begin = perf_counter()
        call()
        times.append(perf_counter() - begin)
    return min(times)
