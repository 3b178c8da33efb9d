"""Lets the kernels of these tests run in Triton's interpreter; compiling for a device takes a process of its own."""

import os
import sys

import pytest

if "triton" in sys.modules:
    pytest.exit("triton was imported before tests/test_triton could choose its interpreter", 1)
# Before anything imports triton: it decides once what @triton.jit makes.
os.environ["TRITON_INTERPRET"] = "1"

from attncompiler.runtime.triton_interpreter import repair

repair()
