"""Chooses how the Triton kernels of a call are cut, from the device, the element type, the sizes and what kernels keep.

Nothing is timed and nothing is compiled here. What a device refuses is passed over for the next choice, and so is what
lacks registers and keeps numbers in memory instead, as long as there is one that does not. NVIDIA's assembler is told
how many registers there are before that: untold it may spill to fit more blocks, told it may spill where it would not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from attncompiler.backends.gpu_targets import TARGETS, Target
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.runtime.errors import OldGpuError
from attncompiler.runtime.triton_launch import Tiling

T = TypeVar("T")
# What the interpreter runs: its time is that of its steps.
INTERPRETED = Tiling(64, 64, 4, 2)
_FEWEST_ROWS = 16


@dataclass(frozen=True, slots=True)
class Choice:
    """The target whose tile shapes a device gets; ``reason`` says why it is another than its own, else it is empty."""

    target: Target
    reason: str = ""


def target_for(name: str) -> Choice:
    """The target of an architecture ("sm_90", "gfx942"), for one that is not known that of the nearest older one.

    Raises OldGpuError for one that is older than all that are known.
    """
    if name in TARGETS:
        return Choice(TARGETS[name])
    vendor = "nvidia" if name.startswith("sm_") else "amd"
    known = sorted((t for t in TARGETS.values() if t.vendor == vendor), key=lambda t: _age(t.name))
    older = [t for t in known if _age(t.name) <= _age(name)]
    if not older:
        lacks = "bfloat16 matrix products and asynchronous copies"
        if vendor == "amd":
            lacks = "bfloat16 matrix products at full rate"
        raise OldGpuError(name=name, oldest=known[0].name, lacks=lacks)
    # Cards for graphics of AMD are numbered above those for computing and have as little memory as the oldest.
    nearest = known[0] if vendor == "amd" and _age(name) >= 0x1000 else older[-1]
    return Choice(nearest, f"{name} is not listed; it gets the tile shapes of {nearest.name}")


def choice_of(device: torch.device) -> Choice:
    """The target of a device of torch; see ``target_for``."""
    return target_for(_architecture(device))


def explain_device(device: torch.device) -> str:
    """One line: which architecture's tile shapes calls on a device get, and why."""
    choice = choice_of(device)
    return choice.reason or f"{choice.target.name} has tile shapes of its own"


@cache
def _architecture(device: torch.device) -> str:
    if torch.version.hip:
        found: str = torch.cuda.get_device_properties(device).gcnArchName
        return found.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _age(name: str) -> int:
    """Numbers that grow with newer architectures of one vendor: AMD's are hexadecimal."""
    return int(name.removeprefix("sm_")) if name.startswith("sm_") else int(name[3:], 16)


def tilings(
    listed: Callable[[Target], Sequence[Config]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor | None = None,
    *,
    shrinks: bool = True,
) -> Tilings:
    """The choices for a kernel of a call whose checks have been made, the best guess first.

    ``listed`` gives those of a target; ``grad`` is the gradient of the output, which the kernels of a backward load in
    tiles. ``shrinks``: few queries get blocks of as many rows; TileLang's warps want rows of their own, so it is not
    for them.
    """
    if not q.is_cuda:
        return Tilings([INTERPRETED])
    return tilings_for(listed(choice_of(q.device).target), q, k, v, grad, shrinks=shrinks)


def tilings_for(
    found: Sequence[Config],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor | None = None,
    *,
    shrinks: bool = True,
) -> Tilings:
    """``tilings`` from the list of a target."""
    loaded = (q, k, v) if grad is None else (q, k, v, grad)
    descriptors = describable(*loaded) and (not shrinks or knows_descriptors())
    queries = q.shape[2] if shrinks else max((c.block_m for c in found), default=1)
    return choices_of((_fitted(c, queries, descriptors) for c in found), q)


def choices_of(options: Iterable[Tiling], q: Tensor) -> Tilings:
    """The options for a call of which these are the queries, each once."""
    return Tilings(list(dict.fromkeys(options)), q.is_cuda and not torch.version.hip)


def _fitted(config: Config, queries: int, descriptors: bool) -> Tiling:
    """A configuration for few queries: no more rows than there are, but those of one matrix instruction."""
    rows = max(_FEWEST_ROWS, 1 << max(queries - 1, 0).bit_length())
    warps = min(config.num_warps, 4) if rows < config.block_m else config.num_warps
    return Tiling(
        min(config.block_m, rows),
        config.block_n,
        warps,
        config.num_stages,
        config.descriptors and descriptors,
        apart=config.apart and descriptors,
        chunk=config.chunk,
        raster=config.raster,
        held=config.held,
    )


def describable(*tensors: Tensor) -> bool:
    """Whether the tensor memory accelerator can load tiles: rows and heads begin at multiples of 16 bytes, apart."""
    return all(
        x.numel() > 0
        and x.stride(3) == 1
        and x.stride(2) > 0
        and all(s * x.element_size() % 16 == 0 for s in x.stride()[:3])
        for x in tensors
    )


@cache
def knows_descriptors() -> bool:
    """Whether the Triton that is installed has tensor descriptors made in a kernel."""
    import triton
    import triton.language

    return hasattr(triton, "set_allocator") and hasattr(triton.language, "make_tensor_descriptor")


def for_pointers(tiling: Tiling, *tensors: Tensor) -> Tiling:
    """The tiling for tensors that begin where they do: descriptors want a multiple of 16 bytes."""
    if tiling.descriptors and any(x.data_ptr() % 16 for x in tensors):
        return replace(tiling, descriptors=False, apart=False)
    return tiling


class RefusedError(Exception):
    """A device has not what a kernel asks for; ``kind`` says which kernel, the cause is Triton's own error."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind)
        self.kind = kind


class UnfitError(Exception):
    """A kernel that a device or its compiler does not take with these tiles; the cause is their own error."""


def spilled_bytes(kernel: object) -> int:
    """What a thread of a kernel that was launched keeps in memory for want of registers; 0 of an interpreted one."""
    # Triton counts registers of four bytes, once the kernel is on the device.
    return 4 * int(getattr(kernel, "n_spills", None) or 0)


def _out_of_resources() -> tuple[type[Exception], ...]:
    """Triton's error for a kernel that asks for more than a device has; kernels of others may run without Triton."""
    if sys.modules.get("triton") is None:
        return ()
    from triton.runtime.errors import OutOfResources

    return (OutOfResources,)


@dataclass(slots=True)
class Trial:
    """One attempt at the launches of a call; ``spilled`` are the most bytes that a thread of each kernel spills."""

    spilled: dict[Kind, int] = field(default_factory=dict)

    def run(self, kind: Kind, kernel: Callable[..., Any], /, **arguments: Any) -> None:
        """Launch a kernel; RefusedError where the device has too little for it: nothing was launched."""
        try:
            launched = kernel(**arguments)
        except UnfitError as error:
            raise RefusedError(kind) from error.__cause__
        except _out_of_resources() as error:
            raise RefusedError(kind) from error
        self.spilled[kind] = max(self.spilled.get(kind, 0), spilled_bytes(launched))


@dataclass(slots=True)
class Tilings:
    """The choices for one kernel of calls of one shape, best first, and what has been found out about them.

    ``tells``: after one that spills comes the same, of which the assembler is told how many registers there are.
    """

    options: Sequence[Tiling]
    tells: bool = False
    _chosen: Tiling | None = None
    _refused: set[Tiling] = field(default_factory=set)
    _spilled: dict[Tiling, int] = field(default_factory=dict)

    @property
    def current(self) -> Tiling:
        """What to launch: the first of those that spill the fewest bytes, none of those not yet launched."""
        return self._chosen or self.options[0]

    def prefer(self, tiling: Tiling) -> None:
        """Try a choice before all others, if it is one of them."""
        if tiling in self.options and not self._refused:
            self.options = [tiling, *(t for t in self.options if t != tiling)]
            self._spilled.clear()
            self._chosen = None

    def refuse(self, tiling: Tiling) -> bool:
        """Pass over a choice that cannot run; False where no other can. Threads may refuse the same one."""
        self._refused.add(tiling)
        if len(self._refused) == len(self.options):
            return False
        self._choose()
        return True

    def keeps(self, tiling: Tiling, spilled: int) -> bool:
        """Whether a choice that was launched and spills so many bytes a thread stays the one to launch."""
        if not spilled:
            return True
        told = replace(tiling, told=True)
        if self.tells and told not in self.options:
            at = self.options.index(tiling) + 1
            self.options = [*self.options[:at], told, *self.options[at:]]
        if spilled > self._spilled.get(tiling, 0):
            self._spilled[tiling] = spilled
            self._choose()
        return self.current == tiling

    def _choose(self) -> None:
        left = (t for t in self.options if t not in self._refused)
        self._chosen = min(left, key=lambda t: self._spilled.get(t, 0))


def first_accepted(
    choices: Sequence[tuple[Kind, Tilings]], launch: Callable[[Sequence[Tiling], Trial], T]
) -> T:
    """``launch(tilings, trial)`` with the first choices, one a kernel, that a device runs without spills.

    What a launch does before it is refused or passed over must be undone, or be done to memory of its own. Raises
    Triton's OutOfResources where a kernel has no choice left.
    """
    while True:
        tried = [options.current for _, options in choices]
        trial = Trial()
        try:
            result = launch(tried, trial)
        except RefusedError as refused:
            for (kind, options), tiling in zip(choices, tried, strict=True):
                if kind == refused.kind and not options.refuse(tiling):
                    raise (refused.__cause__ or refused) from None
            continue
        kept = [
            options.keeps(tiling, trial.spilled.get(kind, 0))
            for (kind, options), tiling in zip(choices, tried, strict=True)
        ]
        if all(kept):
            return result


__all__ = [
    "Choice",
    "RefusedError",
    "Tilings",
    "Trial",
    "UnfitError",
    "choice_of",
    "choices_of",
    "describable",
    "explain_device",
    "first_accepted",
    "for_pointers",
    "spilled_bytes",
    "target_for",
    "tilings",
    "tilings_for",
]
