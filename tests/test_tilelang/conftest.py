"""Lets kernels run on the CPU: TileLang's as C for one thread, Triton's planning kernels in its interpreter."""

import os
import sys
from importlib.util import find_spec

import pytest

if "triton" in sys.modules:
    pytest.exit("triton was imported before tests/test_tilelang could choose its interpreter", 1)
os.environ["TRITON_INTERPRET"] = "1"

from attncompiler.runtime.interpreting import SERIAL_SWITCH

os.environ[SERIAL_SWITCH] = "1"

# Importing it would change `inspect` for the tests of other folders.
if find_spec("tilelang") is None:
    collect_ignore_glob = ["test_*.py"]
