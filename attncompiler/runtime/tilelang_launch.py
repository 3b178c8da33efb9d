"""Gives TileLang kernels the calls of Triton kernels: ``module.forward[grid](**arguments)``, by the same names.

A generated file makes a kernel for constants: element type, head dimensions, tiles, which optional results are wanted.
Here a call's arguments are parted into constants and what the kernel takes at run time, and kernels are kept.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from attncompiler.backends.tile_config import Kind, parted, tilelang_width
from attncompiler.runtime.call_checks import ELEMENT_TYPES
from attncompiler.runtime.errors import DtypeError, LimitError
from attncompiler.runtime.interpreting import SERIAL_SWITCH
from attncompiler.runtime.tilelang_file import TilelangFile, read_file
from attncompiler.runtime.tilings import UnfitError

Kernel = Callable[[Mapping[str, Any]], None]
# By warp groups that multiply: a multiprocessor has 65536 registers, one group that loads keeps 24 a thread.
HOPPER_REGISTERS = {1: 240, 2: 240, 3: 160}
# Of the second and third axis of a grid.
_LARGEST_AXIS = 65535
# What 32 bits count.
_LONGEST = 2**31 - 1
_RENAMED = {"value": "values"}


class Origin(Protocol):
    """Where the kernels of a file come from: an imported module, or the files of a package."""

    @property
    def source(self) -> str:
        """The text of the file."""

    def make(self, name: str) -> Callable[..., Any]:
        """The file's function that traces a kernel; it takes TileLang."""

    def carried(
        self, name: str, constants: Mapping[str, Any], device: torch.device
    ) -> Kernel | None:
        """A kernel that was compiled before for such a device; None where there is none."""


class Imported:
    """The ``Origin`` of a compilation: a module that was imported with TileLang."""

    def __init__(self, module: ModuleType) -> None:
        assert module.__file__ is not None
        self.source = Path(module.__file__).read_text(encoding="utf-8")
        self._module = module

    def make(self, name: str) -> Callable[..., Any]:
        """The module's function."""
        found: Callable[..., Any] = getattr(self._module, name)
        return found

    def carried(
        self, name: str, constants: Mapping[str, Any], device: torch.device
    ) -> Kernel | None:
        """TileLang itself keeps what it compiled."""
        return None


class TilelangModule:
    """The kernels of a generated file, called as those of a Triton module."""

    TILELANG = True
    __name__: str
    __file__: str | None
    forward: Launch
    rows: Launch
    columns: Launch

    def __init__(self, file: TilelangFile, origin: Origin) -> None:
        self.REVERSED, self.DOT_SCALE = file.reversed, file.dot_scale
        for name in ("forward", "rows", "columns"):
            if name in file.kernels:
                setattr(self, name, Launch(file, name, origin))

    @classmethod
    def of(cls, module: ModuleType) -> TilelangModule:
        """The kernels of an imported file, under its name: tuning finds the source by that."""
        origin = Imported(module)
        made = cls(read_file(origin.source), origin)
        made.__name__, made.__file__ = module.__name__, module.__file__
        return made


class Launch:
    """One kernel: ``launch[grid](**arguments)``; the grid is the kernel's own.

    A forward that is asked for ``APART`` has its other schedule, where the file has one: see ``Tiling.apart``.
    """

    def __init__(self, file: TilelangFile, name: str, origin: Origin) -> None:
        apart = name == "forward" and "groups" in file.kernels
        self.apart = Launch(file, "groups", origin) if apart else None
        self.name, self.origin = name, origin
        taken = file.kernels[name]
        self._order, self._shaped, self._constants = taken.order, taken.shaped, taken.constants
        self._widens = file.widens
        self._kernels: dict[tuple[object, ...], Kernel] = {}
        self._lock = threading.RLock()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._run

    def _run(self, **arguments: Any) -> None:
        if arguments.pop("APART", False):
            why = self._refusal(arguments)
            if self.apart is None or why:
                raise UnfitError from RuntimeError(f"warp groups apart: {why}")
            self.apart._run(**arguments)
            return
        found = {
            _RENAMED.get(n, n): x
            for name, x in arguments.items()
            for n in (name.removesuffix("_pointer"),)
        }
        if found.get("kept") is not None and not len(found["kept"]):
            found["kept"] = None  # a variant that keeps no statistics was asked for them
        q: Tensor = found["q"]
        check_grid(heads=q.shape[1], batch=q.shape[0])
        tma = bool(found["DESCRIPTORS"])
        found["together"] = found["H"] // max(found["G"], 1)
        found.setdefault("raster", 1)
        if found.get("PERSISTENT") or found.get("CHUNK"):
            raise UnfitError from RuntimeError("only kernels of Triton are persistent or chunked")
        if "HELD" not in self._constants and found.get("HELD"):
            raise UnfitError from RuntimeError(f"the kernel {self.name} holds no rows in registers")
        constants = self._chosen(found, q)
        key = q.device, tma, *constants.values()
        kernel = self._kernels.get(key)
        if kernel is None:
            with self._lock:
                kernel = self._kernels.get(key)
                if kernel is None:
                    made = self._made(constants, q.device, tma=tma)
                    kernel = self._kernels[key] = made
        kernel({name: self._given(name, found.get(name), q) for name in self._order})

    def _refusal(self, arguments: Mapping[str, Any]) -> str:
        """Why a call cannot have the schedule with warp groups apart; empty where it can."""
        q: Tensor = arguments["q_pointer"]
        if self.apart is None:
            return "some walk over the keys of this variant reads no scores"
        if not registers_of(q.device, arguments["num_warps"]):
            return f"it is for Hopper and 4, 8 or 12 warps, not for {q.device} and {arguments['num_warps']}"
        if not arguments["DESCRIPTORS"]:
            return "rows of q, k or v do not begin at multiples of 16 bytes"
        if self._parted(arguments):
            return "its blocks have fewer than 16 rows for a warp"
        if q.dtype == torch.float16 and self._widens:
            return "float16 may not hold this variant's weights"
        return ""

    def _parted(self, found: Mapping[str, Any]) -> bool:
        kind: Kind = "columns" if self.name == "columns" else "forward"
        return parted(kind, found["BLOCK_M"], found["BLOCK_N"], found["num_warps"])

    def _chosen(self, found: Mapping[str, Any], q: Tensor) -> dict[str, Any]:
        """The constants that this kernel is made for."""
        if on_gpu(q.device) and q.dtype == torch.float32 and found["PRECISION"] == "ieee":
            raise DtypeError(
                name="q",
                detail="TileLang multiplies float32 as tf32 on a GPU, which torch does not allow here",
                fix='set torch.backends.cuda.matmul.allow_tf32 = True, or compile with backend="triton"',
            )
        if not on_gpu(q.device) and q.dtype != torch.float32:
            raise DtypeError(
                name="q",
                detail="on the CPU, where TileLang's kernels run as C to be checked, they know float32 only",
                fix="convert to float32, or give tensors on a CUDA device",
            )
        hopper = registers_of(q.device, found["num_warps"])
        # Without TMA no warp group loads for the others.
        stages = found["num_stages"] if found["DESCRIPTORS"] or not hopper else 1
        pointers = not found["DESCRIPTORS"] and warp_of(q.device) == 32
        sizes = (x for n, x in found.items() if "_extent" in n or "_stride" in n)
        known = {
            "dtype": ELEMENT_TYPES[q.dtype],
            **{n: x for n, x in found.items() if n.isupper()},
            "HEAD_WIDTH": tilelang_width(found["HEAD_DIM"], pointers=pointers),
            "VALUE_WIDTH": tilelang_width(found["VALUE_DIM"], pointers=pointers),
            "LONG": found["LONG"] or any(abs(x) > _LONGEST for x in sizes),
            "STAGES": stages, "THREADS": found["num_warps"] * warp_of(q.device),
            "WIDEN": q.dtype == torch.float16, "SERIAL": not on_gpu(q.device),
            "REGISTERS": hopper if found["DESCRIPTORS"] else 0,
            "HELD": bool(found.get("HELD")), "PARTED": self._parted(found),
            "GIVEN": tuple(n for n in self._order if found.get(n) is not None),
        }  # fmt: skip
        return {name: known[name] for name in self._constants}

    def _given(self, name: str, x: Any, like: Tensor) -> Any:
        """An argument as the kernel takes it; one element for a tensor that is left out, which is not touched."""
        if x is None:
            dtype = torch.int32 if name in ("tile_lists", "block_order") else torch.float32
            return _empty(like.device, dtype)
        return flat(x) if isinstance(x, Tensor) and name not in self._shaped else x

    def _made(self, constants: Mapping[str, Any], device: torch.device, *, tma: bool) -> Kernel:
        """The kernel for a device: one that is carried, else what TileLang makes."""
        if not on_gpu(device):
            return self._serial(constants)
        found = self.origin.carried(self.name, constants, device)
        return self._compiled(constants, tma) if found is None else found

    def _serial(self, constants: Mapping[str, Any]) -> Kernel:
        from attncompiler.runtime.tilelang_serial import build

        make = self.origin.make(self.name)
        source = f"{self.origin.source}\n{self.name} {sorted(constants.items())}"
        return build(self.name, lambda: make(**constants), self._order, source)

    def _compiled(self, constants: Mapping[str, Any], tma: bool) -> Kernel:
        """The kernel for the current device; TileLang keeps what it compiled."""
        make = self.origin.make(self.name)
        import tilelang

        options = pass_configs(tma=tma, apart=self.name == "groups")
        try:
            kernel = tilelang.compile(make(**constants), pass_configs=options)
        except (
            Exception
        ) as error:  # TileLang names no class: what does not fit gives way to smaller tiles
            raise UnfitError from _as_runtime_error(error)

        def call(values: Mapping[str, Any]) -> None:
            kernel(*values.values())

        return call


def ready_tilelang() -> None:
    """Import TileLang and take back its ``inspect.getfile``, which fails on classes of modules that are not listed."""
    found = inspect.getfile
    try:
        import tilelang.language  # noqa: F401
    finally:
        inspect.getfile = found


def pass_configs(*, tma: bool = True, apart: bool = False) -> dict[Any, Any]:
    """How TileLang compiles our kernels: denormals are 0, so that an exponential is one instruction.

    Without ``tma`` tiles are loaded by all threads; ``apart``: the kernel itself says which threads load.
    """
    import tilelang

    key = tilelang.PassConfigKey
    options: dict[Any, Any] = {key.TL_DEVICE_COMPILE_FLAGS: ["-ftz=true"]}
    if not tma:
        options[key.TL_DISABLE_TMA_LOWER] = True
    if not tma or apart:
        options[key.TL_DISABLE_WARP_SPECIALIZED] = True
    return options


def _as_runtime_error(error: Exception) -> RuntimeError:
    """What tuning takes for a choice that cannot run, whatever TileLang raised."""
    if isinstance(error, RuntimeError):
        return error
    return RuntimeError(f"TileLang makes no such kernel: {type(error).__name__}: {error}")


@cache
def _empty(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.zeros(1, dtype=dtype, device=device)


def registers_of(device: torch.device, warps: int) -> int:
    """What a thread of the warp groups that multiply may hold on Hopper, beside one group that loads; else 0."""
    if not on_gpu(device) or torch.version.hip or capability(device)[0] != 9:
        return 0
    return HOPPER_REGISTERS.get(warps // 4, 0)


def warp_of(device: torch.device) -> int:
    """The threads of a warp: AMD's are twice as wide."""
    return 64 if on_gpu(device) and torch.version.hip else 32


def on_gpu(device: torch.device) -> bool:
    """Whether kernels run on a device as a GPU's; on the CPU they are C for one thread."""
    return device.type == "cuda"


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)


def check_grid(*, heads: int, batch: int) -> None:
    """A grid has an axis for heads and one for batches; LimitError where a device cannot count so far."""
    for what, count in (("heads", heads), ("batches", batch)):
        if count > _LARGEST_AXIS:
            raise LimitError(
                name=f"the number of {what}",
                value=count,
                limit=f"a launch of TileLang counts to {_LARGEST_AXIS}",
                fix='split them, or compile with backend="triton"',
            )


def flat(x: Tensor) -> Tensor:
    """The memory of a tensor from its first element to its last, as one axis; truth values are bytes."""
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    memory = x.as_strided((span,), (1,))
    return memory.view(torch.uint8) if x.dtype == torch.bool else memory


__all__ = ["SERIAL_SWITCH", "Launch", "TilelangModule"]
