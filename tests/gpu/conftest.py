"""Tests on a CUDA device, where kernels are compiled: they take a run of their own (`make test-gpu`).

tests/test_triton makes its process interpret kernels, once and for all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attncompiler.runtime.triton_interpreter import is_interpreting

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    interpreting = is_interpreting()
    for item in items:
        if _HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if torch.cuda.is_available() and interpreting:
            item.add_marker(pytest.mark.skip(reason="this process interprets Triton kernels"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=["triton", "tilelang"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name, reason=f"{name} is not installed here")
    return name
