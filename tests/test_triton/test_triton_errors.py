"""Calls that the Triton backend refuses by name, before a kernel is launched."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import attncompiler
from attncompiler.dsl import Tensor as Input
from attncompiler.dsl import Variant
from attncompiler.runtime.errors import DeviceError, DtypeError
from tests.triton_calls import engine_of


class Gained(Variant):
    gain = Input("h")
    table = Input("rows")

    def score(self, s: Any, at: Any) -> Any:
        return s * self.gain[at.h] + self.table[at.h]


def arguments(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    given = {n: torch.randn(1, 2, 5, 16).to(dtype) for n in "qkv"}
    return given | {"gain": torch.ones(2), "table": torch.zeros(9)}


OP = attncompiler.compile(Gained, backend="triton")


def test_float64_is_refused() -> None:
    with pytest.raises(DtypeError, match=r"q: .*float64 is not supported(?s:.*)backend=\"cpp\""):
        OP(**arguments(torch.float64))
    given = arguments(torch.float64)
    given["v"].requires_grad_()
    with pytest.raises(DtypeError, match="float64 is not supported"):
        OP(**given)


@pytest.mark.parametrize("name", ["q", "gain"])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"{name} is on meta"):
        OP(**arguments() | {name: arguments()[name].to("meta")})


def test_a_tensor_may_be_longer_than_32_bits_count() -> None:
    """Its extent is a 64-bit argument, like strides that pass that bound."""
    given = arguments()
    wanted = OP(**given)
    given["table"] = torch.zeros(1).as_strided((2**31 + 5,), (0,))
    given["gain"] = torch.ones(1).as_strided((2,), (0,))
    assert torch.equal(OP(**given), wanted)


def test_without_an_interpreter_kernels_need_a_device() -> None:
    program = (
        "import torch, attncompiler\n"
        "from attncompiler.dsl import Variant\n"
        "from attncompiler.runtime.errors import DeviceError\n"
        "q = torch.randn(1, 1, 4, 16)\n"
        "try:\n"
        "    attncompiler.compile(Variant, backend='triton')(q, q, q)\n"
        "except DeviceError as error:\n"
        "    print(error)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert "q is on cpu" in done.stdout
    assert "the triton backend runs on CUDA devices" in done.stdout


def test_a_backend_of_the_cpu_is_not_asked_for_triton() -> None:
    """What is not said goes to C++, interpreter or not."""
    op = attncompiler.compile(Gained)
    assert op._engines.name("cpu") == "cpp"
    assert engine_of(OP).sources is engine_of(OP).sources
