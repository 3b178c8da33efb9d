"""Turns a plain pytest run into a repeatable one: fixed threads, fixed examples, a build cache of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: its OpenMP pool reads these once. Several workers share the machine, so idle threads
# sleep instead of spinning.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Kernels are keyed by their whole content, so a cache in the tree can serve run after run; `make clean` empties it.
os.environ["ATTNCOMPILER_CACHE"] = str(Path(__file__).parents[1] / "build" / "test-cache")

import hypothesis
import pytest
import torch

# `make test` always draws the same examples; HYPOTHESIS_PROFILE=explore draws new and more of them.
hypothesis.settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, print_blob=True
)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def quick_builds() -> Iterator[None]:
    """Kernels of a module that is about formulas and calls, compiled in a third of the time.

    What optimisation makes of them is left to tests/test_backends and test_examples.py, which build as users do. Their
    arithmetic is the same: GCC fuses multiplications and additions with the second flag alone.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "ATTNCOMPILER_CXXFLAGS" not in os.environ:
            patch.setenv("ATTNCOMPILER_CXXFLAGS", "-O1 -fexpensive-optimizations")
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch finds no GPU on this machine"))
