"""Calls TileLang's host code on the stand-in for the CUDA driver; needs neither TileLang nor attncompiler."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_TYPES = {"int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float}


def loaded(path: Path) -> Any:
    """The library, which has heard nothing."""
    found = ctypes.CDLL(str(path))
    found.noted.restype = ctypes.c_char_p
    found.start(0, 0)
    return found


def noted(found: Any) -> list[str]:
    """What it heard, a call a line."""
    return str(found.noted().decode()).split("\n")


def arguments(meanings: Iterable[Any], values: Mapping[str, Any]) -> list[Any]:
    """What the host code is called with: see ``HostCode.meanings``."""
    given: list[Any] = []
    for kind, what, name, axis in meanings:
        x = values[name]
        if what == "address":
            given.append(ctypes.c_void_p(x.data_ptr()))
        else:
            number = x if what == "number" else x.shape[axis] if what == "size" else x.stride(axis)
            given.append(_TYPES[kind](number))
    return given
