"""Says whether Triton kernels run in its interpreter, on tensors of the CPU, without importing Triton."""

from __future__ import annotations

import os
import sys


def is_interpreting() -> bool:
    """Whether kernels run in the interpreter: as triton decided, or will decide, when it is imported."""
    triton = sys.modules.get("triton")
    if triton is not None and hasattr(triton, "language"):
        return not isinstance(triton.language.sum, triton.JITFunction)
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
