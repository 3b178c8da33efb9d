"""A stand-in for a GPU: tensors in the CPU's memory that say they are on a device, and a driver that notes launches.

Triton compiles the kernels of a call for the architecture as on a machine that has it, and would launch them. So a
test sees what only a device sees otherwise: which kernels, with which grids and options, on which stream, and what is
done when a device refuses one. Results are whatever was in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode

from attncompiler.runtime import registration

DEVICE = torch.device("cuda", 0)
_PLACE = (torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__)


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PLACE:
            return (DEVICE, True)[_PLACE.index(func)]
        return super().__torch_function__(func, types, args, _here(kwargs)[0])


class _Allocations(TorchFunctionMode):
    """What is asked for on the device comes from the CPU's memory."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named, asked = _here(kwargs)
        result = func(*args, **named)
        return result.as_subclass(OnDevice) if asked else result


def _here(kwargs: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
    named = dict(kwargs or {})
    asked = named.get("device") is not None and torch.device(named["device"]).type == "cuda"
    return (named | {"device": "cpu"} if asked else named), asked


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: the kernel, the programs, what it was compiled with, the stream."""

    kernel: str
    grid: tuple[int, int, int]
    options: Any
    stream: int


@dataclass(slots=True)
class StandIn:
    """A device of an architecture; ``spills`` says how many registers of a thread of a kernel go to memory."""

    arch: str
    launches: list[Launch] = field(default_factory=list)
    stream: int = 7
    memory: int = 1 << 20
    spills: Callable[[Any], int] = lambda options: 0

    def driver(self) -> Any:
        """What Triton asks for devices, for binaries and for launches."""
        from triton.backends.compiler import GPUTarget

        is_nvidia, me = self.arch.startswith("sm_"), self
        target = (
            GPUTarget("cuda", int(self.arch[3:]), 32)
            if is_nvidia
            else GPUTarget("hip", self.arch, 64)
        )
        newest: list[Any] = []

        class Launcher:
            def __init__(self, source: Any, options: Any) -> None:
                self.source, self.options = source, options
                newest[:] = [options]

            def __call__(
                self, x: int, y: int, z: int, stream: int, function: Any, *rest: Any
            ) -> None:
                me.launches.append(Launch(function, (x, y, z), self.options, stream))

        def load(name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
            assert binary
            return "module", name, 128, me.spills(newest[0]), 1024

        properties = {"max_shared_mem": self.memory}
        return SimpleNamespace(
            launcher_cls=Launcher,
            utils=SimpleNamespace(load_binary=load, get_device_properties=lambda _: properties),
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda _: me.stream,
            get_active_torch_device=lambda: DEVICE,
        )


@contextmanager
def stand_in(arch: str, **settings: Any) -> Iterator[StandIn]:
    """A device that operators run on; one tensor of each call must want a gradient, so that calls go through torch."""
    import triton
    from triton.compiler.compiler import max_shared_mem

    max_shared_mem.cache_clear()
    device = StandIn(arch, **settings)
    properties = SimpleNamespace(name=f"stand-in {arch}", gcnArchName=arch)
    capability = divmod(int(arch[3:]), 10) if arch.startswith("sm_") else (9, 4)
    program: Any = registration._Program
    with (
        patch.object(torch.version, "hip", None if arch.startswith("sm_") else "7.0"),
        patch.multiple(
            torch.cuda,
            device=lambda _: nullcontext(),
            get_device_properties=lambda _: properties,
            get_device_capability=lambda _: capability,
            is_current_stream_capturing=lambda: False,
            current_stream=lambda _: SimpleNamespace(cuda_stream=device.stream),
        ),
        patch.object(program, "forward", _moved(program.forward)),
        patch.object(program, "backward", _moved(program.backward)),
        patch.object(triton.runtime.driver, "_active", device.driver()),
    ):
        yield device


def _moved(run: Callable[..., Any]) -> Callable[..., Any]:
    """The forward or backward of a program for tensors that are on the device."""

    def moved(self: Any, *arguments: Any) -> Any:
        given = (x.as_subclass(OnDevice) if isinstance(x, torch.Tensor) else x for x in arguments)
        with _Allocations():
            results = run(self, *given)
        return tuple(x.as_subclass(torch.Tensor) for x in results)

    return moved
