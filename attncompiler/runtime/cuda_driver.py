"""The few functions of the CUDA driver that a launch of a binary takes, by ctypes, with errors in words.

Kernels run in the primary context of a device, which is the one that torch uses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from attncompiler.runtime.errors import CudaDriverError

LIBRARY = "libcuda.so.1"
# CUtensorMap: 128 bytes at a multiple of 64.
_MAP_BYTES, _MAP_ALIGNMENT = 128, 64
# CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MAX_DYNAMIC_SHARED = 8
_POINTER, _INT, _UINT = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
_FUNCTIONS: dict[str, list[Any]] = {
    "cuGetErrorName": [_INT, ctypes.POINTER(ctypes.c_char_p)],
    "cuGetErrorString": [_INT, ctypes.POINTER(ctypes.c_char_p)],
    "cuDeviceGet": [ctypes.POINTER(_INT), _INT],
    "cuDevicePrimaryCtxRetain": [ctypes.POINTER(_POINTER), _INT],
    "cuCtxPushCurrent_v2": [_POINTER],
    "cuCtxPopCurrent_v2": [ctypes.POINTER(_POINTER)],
    "cuModuleLoadData": [ctypes.POINTER(_POINTER), ctypes.c_char_p],
    "cuModuleGetFunction": [ctypes.POINTER(_POINTER), _POINTER, ctypes.c_char_p],
    "cuFuncSetAttribute": [_POINTER, _INT, _INT],
    "cuTensorMapEncodeTiled": [_POINTER, _INT, _UINT, *[_POINTER] * 5, *[_INT] * 4],
    "cuLaunchKernel": [_POINTER, *[_UINT] * 7, *[_POINTER] * 3],
}


@dataclass(frozen=True, slots=True)
class TensorMap:
    """The arguments of ``cuTensorMapEncodeTiled``; ``strides`` in bytes, of all axes but the first."""

    type: int
    address: int
    sizes: Sequence[int]
    strides: Sequence[int]
    box: Sequence[int]
    steps: Sequence[int]
    interleave: int
    swizzle: int
    promotion: int
    fill: int


class Driver:
    """The driver's functions; each raises CudaDriverError where the driver does not succeed."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, types in _FUNCTIONS.items():
            function = getattr(library, name, None)
            if function is None:
                fix = "update NVIDIA's driver: tensor maps came with that of CUDA 12"
                raise CudaDriverError(what=name, why="the driver has no such function", fix=fix)
            function.argtypes, function.restype = types, _INT

    def _call(self, name: str, *arguments: Any, fix: str = "") -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            why = f"{self._said('cuGetErrorName', status)} ({status})"
            if text := self._said("cuGetErrorString", status):
                why += f", {text}"
            raise CudaDriverError(
                what=name, why=why, fix=fix or "see what ran on the device before"
            )

    def _said(self, name: str, status: int) -> str:
        text = ctypes.c_char_p()
        known = getattr(self._library, name)(status, ctypes.byref(text)) == 0
        return text.value.decode() if known and text.value else ""

    def context(self, device: int) -> int:
        """The primary context of a device; it is kept."""
        found, context = _INT(), _POINTER()
        self._call("cuDeviceGet", ctypes.byref(found), device)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), found)
        return context.value or 0

    @contextmanager
    def current(self, context: int) -> Iterator[None]:
        """Make a context that of this thread."""
        self._call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(_POINTER()))

    def load(self, image: bytes, entry: str, shared: int) -> int:
        """A function of a binary in the current context, allowed to have ``shared`` bytes of dynamic shared memory."""
        module, function = _POINTER(), _POINTER()
        fix = "it is not for this device: build the package anew with --arch for it"
        self._call("cuModuleLoadData", ctypes.byref(module), image, fix=fix)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, entry.encode())
        if shared:
            fix = "the device has less shared memory for a block than the kernel was built for"
            self._call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, shared, fix=fix)
        return function.value or 0

    def encode(self, tensor: TensorMap) -> Any:
        """A tensor map, as an array of bytes where a launch may have it."""
        memory = (ctypes.c_ubyte * (_MAP_BYTES + _MAP_ALIGNMENT))()
        start = -ctypes.addressof(memory) % _MAP_ALIGNMENT
        made = (ctypes.c_ubyte * _MAP_BYTES).from_buffer(memory, start)
        self._call(
            "cuTensorMapEncodeTiled", ctypes.addressof(made), tensor.type, len(tensor.sizes), tensor.address,
            _array(ctypes.c_uint64, tensor.sizes), _array(ctypes.c_uint64, tensor.strides),
            _array(ctypes.c_uint32, tensor.box), _array(ctypes.c_uint32, tensor.steps),
            tensor.interleave, tensor.swizzle, tensor.promotion, tensor.fill,
            fix=f"the tensor memory accelerator does not take sizes {list(tensor.sizes)} with "
            f"strides of {list(tensor.strides)} bytes",
        )  # fmt: skip
        return made

    def launch(
        self,
        function: int,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        stream: int,
        parameters: Sequence[Any],
    ) -> None:
        """Launch; ``parameters`` are ctypes objects."""
        pointers = (_POINTER * len(parameters))(*map(ctypes.addressof, parameters))
        self._call("cuLaunchKernel", function, *grid, *block, shared, stream, pointers, None)


def _array(kind: Any, values: Sequence[int]) -> Any:
    return (kind * len(values))(*values)


@cache
def cuda_driver() -> Driver:
    """The driver of this machine. Raises CudaDriverError."""
    try:
        return Driver(ctypes.CDLL(LIBRARY))
    except OSError as error:
        fix = "install NVIDIA's driver"
        raise CudaDriverError(what=LIBRARY, why=str(error), fix=fix) from error
