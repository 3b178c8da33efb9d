"""Launches a binary of TileLang without TileLang: turns a call's arguments and a description into the driver's calls.

``tilelang_description.py`` made the description of TileLang's own host module.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from attncompiler.errors import InternalError
from attncompiler.runtime.cuda_driver import Driver, TensorMap
from attncompiler.runtime.errors import LimitError

_TYPES: dict[str, Any] = {
    "int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float,
}  # fmt: skip
_BITS = {"int32": 32, "int64": 64}
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "//": lambda x, y: x // y,
    "%": lambda x, y: x % y,
    "min": min,
    "max": max,
}


class BinaryKernel:
    """A binary and the description of its launches; it is loaded once on each device.

    Raises InternalError for a description that only says why there is none.
    """

    def __init__(self, driver: Driver, image: bytes, launch: Mapping[str, Any]) -> None:
        if "refused" in launch:
            raise InternalError("tilelang launch", launch["refused"])
        self._driver, self._image, self._launch = driver, image, launch
        self._loaded: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def __call__(self, values: Mapping[str, Any]) -> None:
        """Launch on torch's current stream, with arguments by name; ``q`` says on which device."""
        device: torch.device = values["q"].device
        index = torch.cuda.current_device() if device.index is None else device.index
        self.run(values, index, torch.cuda.current_stream(device).cuda_stream)

    def run(self, values: Mapping[str, Any], device: int, stream: int) -> None:
        """Launch on a stream of a device."""
        launch, driver = self._launch, self._driver
        context, function = self._function(device)
        grid, block = (
            [int(evaluate(x, values)) for x in launch[what]] for what in ("grid", "block")
        )
        with driver.current(context):
            maps = [driver.encode(_map(x, values)) for x in launch["maps"]]
            given = [_parameter(kind, x, maps, values) for kind, x in launch["parameters"]]
            driver.launch(function, grid, block, launch["shared"], stream, given)

    def _function(self, device: int) -> tuple[int, int]:
        with self._lock:
            found = self._loaded.get(device)
            if found is None:
                launch, context = self._launch, self._driver.context(device)
                with self._driver.current(context):
                    function = self._driver.load(self._image, launch["entry"], launch["shared"])
                found = self._loaded[device] = context, function
            return found


def evaluate(x: Any, values: Mapping[str, Any]) -> float:
    """A number of a description, for the arguments of a call."""
    match x:
        case int():
            return x
        case ["number", name]:
            return values[name]  # type: ignore[no-any-return]
        case ["size", name, axis]:
            return values[name].shape[axis]  # type: ignore[no-any-return]
        case ["stride", name, axis]:
            return values[name].stride(axis)  # type: ignore[no-any-return]
        case [operation, left, right]:
            return _OPERATIONS[operation](int(evaluate(left, values)), int(evaluate(right, values)))
    raise ValueError(f"a description of a launch has no {x!r}")


def _parameter(kind: str, x: Any, maps: list[Any], values: Mapping[str, Any]) -> Any:
    """One parameter of a kernel as an object of ctypes."""
    if kind == "map":
        return maps[x]
    if kind == "address":
        return ctypes.c_void_p(_tensor(values, x).data_ptr())
    number = evaluate(x, values)
    bits = _BITS.get(kind)
    if bits is not None and not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise LimitError(
            name="an extent, a stride or a number of the call",
            value=number,
            limit=f"this binary counts in {bits} bits",
            fix="split the call, or install TileLang, which builds a kernel for it",
        )
    return _TYPES[kind](number)


def _map(x: Mapping[str, Any], values: Mapping[str, Any]) -> TensorMap:
    def numbers(name: str) -> list[int]:
        return [int(evaluate(n, values)) for n in x[name]]

    return TensorMap(
        type=x["type"],
        address=_tensor(values, x["tensor"]).data_ptr(),
        sizes=numbers("sizes"),
        strides=numbers("strides"),
        box=numbers("box"),
        steps=numbers("steps"),
        interleave=x["interleave"],
        swizzle=x["swizzle"],
        promotion=x["promotion"],
        fill=x["fill"],
    )


def _tensor(values: Mapping[str, Any], name: str) -> Tensor:
    found: Tensor = values[name]
    return found
