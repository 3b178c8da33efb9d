"""Lets kernels run on the CPU: TileLang's as C for one thread, Triton's planning kernels in its interpreter."""

import os
import sys

import pytest

if "triton" in sys.modules:
    pytest.exit("triton was imported before tests/test_tilelang could choose its interpreter", 1)
os.environ["TRITON_INTERPRET"] = "1"

from attncompiler.runtime.interpreting import SERIAL_SWITCH

os.environ[SERIAL_SWITCH] = "1"

pytest.importorskip("tilelang", reason="TileLang is not installed here")
