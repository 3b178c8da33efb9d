"""Says which of the architectures that binaries were compiled for a device can run, as CUDA's rules have it."""

from __future__ import annotations

from collections.abc import Iterable

# From Hopper on binaries are compiled with what only that generation has ("sm_90a"); they run nowhere else.
_FIRST_SPECIFIC = 9


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether a device of a compute capability runs TileLang's binaries for "sm_80" and its like.

    Binaries run on the same major version with the same or a higher minor one; those for sm_90 and newer on their own.
    AMD's ("gfx942") run on no NVIDIA device.
    """
    made = capability_of(architecture)
    if made is None or made[0] != capability[0]:
        return False
    return made == capability if made[0] >= _FIRST_SPECIFIC else made[1] <= capability[1]


def best_for(architectures: Iterable[str], capability: tuple[int, int]) -> str:
    """The newest of the architectures whose binaries a device runs; empty where it runs none."""
    fitting = [name for name in architectures if runs_on(name, capability)]
    return max(fitting, key=lambda name: capability_of(name) or (0, 0), default="")


def capability_of(architecture: str) -> tuple[int, int] | None:
    """The compute capability of an architecture of NVIDIA, (8, 0) for "sm_80"; None for one of AMD."""
    if not architecture.startswith("sm_"):
        return None
    return divmod(int(architecture.removeprefix("sm_")), 10)
