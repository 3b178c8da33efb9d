"""What calls launch on a GPU, seen on a stand-in for one: kernels, grids, options, streams, and what refusals lead to.

Triton compiles for the architecture here. It runs in a process of its own, since other tests make theirs interpret.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed here")

ROOT = Path(__file__).parents[1]
MEMORY = 40 << 10
Launches = list[dict[str, Any]]


@pytest.fixture(scope="module", params=["sm_90", pytest.param("gfx942", marks=pytest.mark.slow)])
def arch(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def found(arch: str) -> dict[str, dict[str, Launches]]:
    cache = Path(os.environ["ATTNCOMPILER_CACHE"]) / "triton"
    environment = {n: x for n, x in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu_launches", arch, str(MEMORY)],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, dict[str, Launches]] = json.loads(done.stdout.splitlines()[-1])
    return result


def names(launches: Launches) -> list[str]:
    return [launch["kernel"] for launch in launches]


def test_a_step_of_training(found: dict[str, dict[str, Launches]]) -> None:
    steps = found["training"]
    assert names(steps["forward"]) == ["plan", "forward"]
    plan, forward = steps["forward"]
    # 160 queries; one program a block, of all 4 heads of 2 batches for the forward.
    assert forward["grid"] == [plan["grid"][0] * 8, 1, 1]
    *plans, first, second, columns = names(steps["backward"])
    # The gradient of the table: whole numbers are measured first, then summed, in any order to the same bits.
    assert (first, second, columns) == ("rows", "rows", "columns")
    assert set(plans) <= {"plan"}


def test_lists_of_tiles_are_made_once_for_each_stream(
    found: dict[str, dict[str, Launches]],
) -> None:
    steps = found["training"]
    assert names(steps["again"]) == ["forward"]
    assert names(steps["another stream"]) == ["plan", "forward"]
    assert names(steps["that stream again"]) == ["forward"]
    assert names(steps["other documents"]) == ["plan", "forward"]
    streams = {name: {launch["stream"] for launch in made} for name, made in steps.items()}
    assert streams.pop("forward") == streams.pop("backward") == streams.pop("again") == {7}
    assert all(found == {8} for found in streams.values())


def test_blocks_have_the_threads_of_the_architecture(
    found: dict[str, dict[str, Launches]], arch: str
) -> None:
    launches = [x for step in found["training"].values() for x in step if x["kernel"] != "plan"]
    lanes = 32 if arch.startswith("sm_") else 64
    for launch in launches:
        assert launch["threads"] == launch["warps"] * lanes
        assert launch["registers"] is None  # nothing spills


def test_tiles_that_spill_are_passed_over(found: dict[str, dict[str, Launches]], arch: str) -> None:
    tried, kept = found["choosing"]["tried"], found["choosing"]["kept"]
    assert [x["warps"] > 4 for x in tried] == [True] * (len(tried) - 1) + [False]
    assert kept == tried[-1:]
    *spilled, last = [x["registers"] for x in tried]
    assert last is None
    # NVIDIA's assembler is told of all 65536 registers before other tiles are tried.
    assert spilled == (
        [None, 255] * (len(spilled) // 2) if arch == "sm_90" else [None] * len(spilled)
    )


def test_tiles_that_a_device_has_no_room_for_are_never_launched(
    found: dict[str, dict[str, Launches]],
) -> None:
    (launch,) = found["refusing"]["launched"]
    assert 0 < launch["shared"] <= MEMORY
