"""What offline compilers are asked and what they answer, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attncompiler.backends.gpu_targets import Target

Constant = bool | int | float | str | tuple[str, ...] | None
Language = Literal["triton", "tilelang"]


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """One kernel in one configuration.

    ``source`` is a Python file that holds the ``@triton.jit`` function ``kernel`` and everything of ours it calls:
    its text is the key of the cache. ``signature`` gives Triton's type of every argument (``"*bf16"``, ``"i32"``,
    ``"fp32"``) except those in ``constexprs``; ``aligned`` are the arguments that 16 divides. A function ``kernel`` of
    TileLang takes ``constexprs`` and makes the kernel, which knows the types of its arguments. ``registers`` are those
    that a thread may use, as the assembler is told where it spills untold; 0 leaves it to it in any case.
    """

    source: Path
    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Constant]
    aligned: frozenset[str] = frozenset()
    num_warps: int = 4
    num_stages: int = 2
    language: Language = "triton"
    registers: int = 0

    @property
    def key(self) -> str:
        """All that decides the binary, but for the target and the compiler."""
        parts = (
            dict(self.signature), dict(self.constexprs), sorted(self.aligned), self.num_warps, self.num_stages,
            *([self.registers] if self.registers else []),
        )  # fmt: skip
        return json.dumps([self.source.read_text(), self.kernel, *parts], sort_keys=True)


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel that compiled, and what it takes.

    ``registers``, ``stack`` and the spills are a thread's, in 32-bit registers and bytes; ``shared`` is a block's
    shared memory, dynamic and static, in bytes; ``num_warps`` counts those that warp specialisation added;
    ``warnings`` are the assembler's about serialised tensor instructions; ``instructions`` are counts in the text
    (wgmma, tcgen05, mma, mfma, tma_load, async_copy, lds_copy, exp2) where they are not zero. ``seconds`` is what the
    compile took when it ran, ``cached`` whether that was before.
    """

    request: KernelRequest
    target: Target
    binary: Path
    text: Path
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    tensor_memory: int
    num_warps: int
    warnings: tuple[str, ...]
    instructions: Mapping[str, int]
    seconds: float
    cached: bool

    @property
    def spilled(self) -> int:
        """Bytes that a thread writes to its stack and reads from it for want of registers."""
        return self.spill_stores + self.spill_loads


@dataclass(frozen=True, slots=True)
class Lowered:
    """A kernel in the GPU's own language (``text``), which nothing here compiles; ``reason`` says why.

    ``shared`` is a block's dynamic shared memory in bytes, ``num_warps`` counts its warps; registers are not known.
    """

    request: KernelRequest
    target: Target
    text: Path
    shared: int
    num_warps: int
    reason: str
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """A kernel that did not compile, with the compiler's words or how it ended."""

    request: KernelRequest
    target: Target
    reason: str
