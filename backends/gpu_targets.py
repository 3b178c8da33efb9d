"""Turns the name of a GPU architecture into the limits and rates that kernels are planned against.

The numbers are the makers': NVIDIA's CUDA programming guide (limits by compute capability) and the data sheets of one
usual card an architecture, AMD's CDNA instruction-set manuals and data sheets. A compute unit of AMD counts as an SM,
one die of an MI250X as a card. Nothing here asks for a GPU, torch or Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attncompiler.errors import listed
from attncompiler.runtime.errors import UnknownTargetError

KIB = 1024
# 8-bit floats as torch names them: those of the Open Compute Project, and AMD's first ones without negative zero.
_OCP = ("float8_e4m3fn", "float8_e5m2")
_FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz")
EIGHT_BITS = (*_OCP, *_FNUZ)


@dataclass(frozen=True, slots=True)
class Target:
    """One architecture: what a block may use, what an SM holds, how fast the usual card is.

    Registers are 32 bits wide, shared memory is in bytes, ``tensor_tflops`` in dense bfloat16 TFLOP/s with float32
    sums, ``bandwidth`` in GB/s, ``clock`` in GHz; ``exponentials`` and ``lanes`` are base-2 exponentials and float32
    multiply-adds that an SM finishes a clock. ``registers`` and ``max_registers`` of AMD count both register files.
    ``fp8`` names the 8-bit types its tensor cores multiply; ``narrow_sums``: they add up such products in some 14 bits,
    where float32 has 24.
    """

    name: str
    card: str
    vendor: Literal["nvidia", "amd"]
    warp_size: int
    shared_per_block: int
    shared_per_sm: int
    registers: int
    max_registers: int
    max_threads: int
    max_warps: int
    max_blocks: int
    sms: int
    tensor_tflops: float
    bandwidth: float
    clock: float
    exponentials: int = 16
    lanes: int = 128
    descriptors: bool = False
    fp8: tuple[str, ...] = ()
    narrow_sums: bool = False

    @property
    def is_nvidia(self) -> bool:
        """Whether binaries are cubins (PTX in between) rather than hsaco files."""
        return self.vendor == "nvidia"

    def lacks(self, dtype: str) -> str:
        """What keeps kernels for inputs of a type from running here, in words; empty where nothing does."""
        if dtype not in EIGHT_BITS or dtype in self.fp8:
            return ""
        known = " and ".join(self.fp8) or "no 8-bit floats"
        return f"{self.name} multiplies {known}, not {dtype}"

    @property
    def triton_arch(self) -> int | str:
        """The architecture as Triton names it: 90 for sm_90, "gfx942" for gfx942."""
        return int(self.name.removeprefix("sm_")) if self.is_nvidia else self.name


def _nvidia(
    name: str, card: str, per_sm: int, warps: int, blocks: int, sms: int, *,
    tflops: float, bandwidth: float, clock: float, lanes: int = 128, descriptors: bool = False,
    fp8: tuple[str, ...] = (), narrow_sums: bool = False,
) -> Target:  # fmt: skip
    """``per_sm`` in KiB; of it one KiB a block belongs to the system."""
    return Target(
        name, card, "nvidia", 32, (per_sm - 1) * KIB, per_sm * KIB, 65536, 255, warps * 32, warps, blocks, sms,
        tflops, bandwidth, clock, lanes=lanes, descriptors=descriptors, fp8=fp8, narrow_sums=narrow_sums,
    )  # fmt: skip


def _amd(
    name: str, card: str, lds: int, sms: int, *, tflops: float, bandwidth: float, clock: float,
    fp8: tuple[str, ...] = (),
) -> Target:  # fmt: skip
    """Four SIMDs of 512 registers for each of 64 lanes and 8 waves; 16 barriers bound the blocks."""
    return Target(
        name, card, "amd", 64, lds * KIB, lds * KIB, 4 * 512 * 64, 512, 2048, 32, 16, sms, tflops, bandwidth, clock,
        fp8=fp8,
    )  # fmt: skip


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        _nvidia("sm_80", "A100 SXM 80 GB", 164, 64, 32, 108, tflops=312, bandwidth=2039, clock=1.41, lanes=64),
        _nvidia("sm_86", "RTX 3090", 100, 48, 16, 82, tflops=71, bandwidth=936, clock=1.70),
        _nvidia("sm_89", "RTX 4090", 100, 48, 24, 128, tflops=165, bandwidth=1008, clock=2.52,
                fp8=_OCP, narrow_sums=True),
        _nvidia("sm_90", "H100 SXM", 228, 64, 32, 132, tflops=989, bandwidth=3350, clock=1.83,
                descriptors=True, fp8=_OCP, narrow_sums=True),
        _nvidia("sm_100", "B200", 228, 64, 32, 148, tflops=2250, bandwidth=8000, clock=1.85,
                descriptors=True, fp8=_OCP),
        _nvidia("sm_120", "RTX 5090", 100, 48, 24, 170, tflops=209, bandwidth=1792, clock=2.41,
                descriptors=True, fp8=_OCP),
        _amd("gfx90a", "MI250X (one die)", 64, 110, tflops=192, bandwidth=1638, clock=1.70),
        _amd("gfx942", "MI300X", 64, 304, tflops=1307, bandwidth=5300, clock=2.10, fp8=_FNUZ),
        _amd("gfx950", "MI355X", 160, 256, tflops=2517, bandwidth=8000, clock=2.40, fp8=_OCP),
    )
}  # fmt: skip


def target_of(name: str) -> Target:
    """The architecture of that name, such as ``"sm_90"`` or ``"gfx942"``; raises UnknownTargetError."""
    try:
        return TARGETS[name]
    except KeyError:
        raise UnknownTargetError(name=name, known=listed(name, TARGETS)) from None
