"""Corrects Triton's CPU interpreter, so that kernels run in it compute what they compute on a device.

With TRITON_INTERPRET=1 set before triton is imported, a kernel runs as Python on numpy arrays. ``repair`` replaces
the parts of it that give other numbers than a device does; ``tests/test_triton`` shows each defect.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attncompiler.errors import InternalError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

_MARK = "_attncompiler_repaired"


def is_interpreting() -> bool:
    """Whether kernels run in the interpreter: what triton decided on import, or will decide."""
    triton = sys.modules.get("triton")
    if triton is not None and hasattr(triton, "knobs"):
        return bool(triton.knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
