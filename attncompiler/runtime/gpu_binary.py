"""Turns what GPU assemblers say and print into the resources of one kernel: registers, spills, memory, instructions.

NVIDIA's numbers come from the log of the ptxas that made the binary, AMD's from the table at the end of its assembly
text; instructions are counted in PTX and in AMDGCN text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PTX = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma": r"(?<![\w.])mma\.sync",
    "tma_load": r"cp\.async\.bulk\.tensor\S*\.shared::\w+\.global",
    "async_copy": r"cp\.async\.c[ag]\.",
    "exp2": r"ex2\.approx",
}
_AMDGCN = {"mfma": r"\bv_mfma_", "exp2": r"\bv_exp_f32", "lds_copy": r"\b\w+_load_lds_"}


@dataclass(frozen=True, slots=True)
class Resources:
    """What a block of a kernel takes; a thread's stack and spills are in bytes, shared memory in bytes a block.

    ``registers`` are those of one thread, on AMD of both files together. ``tensor_memory`` is in columns of
    Blackwell's tensor memory.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    tensor_memory: int
    warnings: tuple[str, ...]
    instructions: dict[str, int]


def nvidia_resources(ptx: str, log: str, dynamic: int, tensor_memory: int) -> Resources:
    """From PTX, the log of ``ptxas -v`` and the dynamic shared memory in bytes; raises ValueError for another log."""
    used = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    if not used:
        raise ValueError(f"the log of ptxas names no registers: {log[:500]!r}")
    return Resources(
        registers=max(used),
        spill_stores=_total(r"(\d+) bytes spill stores", log),
        spill_loads=_total(r"(\d+) bytes spill loads", log),
        stack=_total(r"(\d+) bytes stack frame", log),
        shared=dynamic + _total(r"(\d+) bytes smem", log),
        tensor_memory=tensor_memory,
        warnings=_warnings(log),
        instructions=_counts(_PTX, ptx),
    )


def amd_resources(text: str, dynamic: int) -> Resources:
    """From AMDGCN text and the shared memory Triton asks for in bytes; raises ValueError for another text."""
    if ".vgpr_count:" not in text:
        raise ValueError("the assembly text has no table of registers")
    # A spilled register is four bytes that are written once and read at least once. Scalar registers spill into
    # lanes of vector registers, which costs no memory.
    spilled = 4 * _total(r"\.vgpr_spill_count:\s+(\d+)", text)
    return Resources(
        registers=_total(r"\.vgpr_count:\s+(\d+)", text),
        spill_stores=spilled,
        spill_loads=spilled,
        stack=_total(r"\.private_segment_fixed_size:\s+(\d+)", text),
        shared=max(dynamic, _total(r"\.group_segment_fixed_size:\s+(\d+)", text)),
        tensor_memory=0,
        warnings=(),
        instructions=_counts(_AMDGCN, text),
    )


def _total(pattern: str, text: str) -> int:
    return sum(int(n) for n in re.findall(pattern, text))


def _warnings(log: str) -> tuple[str, ...]:
    """The messages about serialised tensor instructions, each once, without its place.

    A message C7519 is none of them: it notes a wait that it added where results are read.
    """
    found = (re.search(r"\(C75\d\d\).*serialized.*", line) for line in log.splitlines())
    return tuple(dict.fromkeys(match[0].strip() for match in found if match))


def _counts(patterns: dict[str, str], text: str) -> dict[str, int]:
    counts = {name: len(re.findall(pattern, text)) for name, pattern in patterns.items()}
    return {name: count for name, count in counts.items() if count}
