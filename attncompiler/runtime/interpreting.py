"""Says whether GPU kernels run on tensors of the CPU, to be checked: Triton's in its interpreter, TileLang's as C."""

from __future__ import annotations

import os
import sys


def is_interpreting() -> bool:
    """Whether kernels run in the interpreter: as triton decided, or will decide, when it is imported."""
    triton = sys.modules.get("triton")
    if triton is not None and hasattr(triton, "language"):
        return not isinstance(triton.language.sum, triton.JITFunction)
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


# Lets kernels of TileLang run on one thread of the CPU.
SERIAL_SWITCH = "ATTNCOMPILER_TILELANG_SERIAL"


def is_serial() -> bool:
    """Whether TileLang kernels run on tensors of the CPU, as C for one thread."""
    return os.environ.get(SERIAL_SWITCH, "") == "1"
