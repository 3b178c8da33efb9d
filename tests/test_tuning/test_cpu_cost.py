"""The cost model of C++ kernels: its figures follow the work, and it prefers what is known to be faster."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attncompiler.backends.cpp import Specialization
from attncompiler.backends.cpp_cut import Schedule
from attncompiler.backends.cpp_schedule import default, space
from attncompiler.backends.triton_work import PairWork
from attncompiler.runtime.tile_tables import Sizes
from attncompiler.tuning.cpp_tuner import in_turns
from attncompiler.tuning.cpu_cost import Load, estimate
from attncompiler.tuning.cpu_device import CpuDevice, cpu_device, machine_for

DEVICE = CpuDevice("32", 32, 32 << 10, 512 << 10, 2, 1.4e11, 1.4e11, 2e10)
SIZES = Sizes(1, 8, 8, 2048, 2048)
LOAD = Load("forward", "float32", SIZES, 64, 64, PairWork(3.5, 1, 1, 1), lambda rows, keys: 1.0)
CUT = default("forward", "32", Specialization("float32", 64, 64))


def test_work_is_counted() -> None:
    found = estimate(LOAD, CUT, DEVICE)
    pairs = 8 * 2048 * 2048
    assert found.flops == 2 * pairs * (64 + 64)
    assert found.exponentials == pairs
    assert found.bytes == 4 * 4 * 8 * 2048 * 64
    assert found.roof == pytest.approx(found.flops / DEVICE.flops)
    assert found.seconds > found.roof
    assert found.bound == "compute"


def test_time_follows_the_share_of_visited_tiles() -> None:
    half = estimate(replace(LOAD, visited=lambda rows, keys: 0.5), CUT, DEVICE)
    assert half.seconds == pytest.approx(estimate(LOAD, CUT, DEVICE).seconds / 2, rel=0.01)


@pytest.mark.parametrize(
    ("load", "bound"),
    [
        (replace(LOAD, sizes=Sizes(1, 1, 1, 8, 8)), "launch"),
        (replace(LOAD, sizes=Sizes(1, 512, 512, 1, 2048)), "bandwidth"),
        (replace(LOAD, pair=PairWork(3.5, 40, 1, 1)), "exponentials"),
    ],
)
def test_what_bounds_a_call(load: Load, bound: str) -> None:
    fast = replace(DEVICE, flops=1e15, lane_flops=1e15) if bound == "bandwidth" else DEVICE
    assert estimate(load, CUT, fast).bound == bound


@pytest.mark.parametrize(
    "worse",
    [
        {"vectors": 1, "keys": 4},  # too few sums to hide a multiply-add's latency
        {"vectors": 6, "keys": 8, "rows": 6},  # more sums than registers
        {"tile": 8},  # sums are loaded and stored again too often
        {"tile": 90, "keys": 16, "vectors": 1},  # keys beyond the tile
        {"blocks": 1},  # keys come from afar for each block
    ],
)
def test_what_is_slower_ranks_behind(worse: dict[str, int]) -> None:
    other: Schedule = replace(CUT, **worse)
    load = replace(LOAD, sizes=Sizes(1, 1, 1, 2048, 2048))
    assert estimate(load, other, DEVICE).seconds > estimate(load, CUT, DEVICE).seconds


def test_a_thread_with_more_work_than_the_other_ranks_behind() -> None:
    load = replace(LOAD, sizes=Sizes(1, 1, 1, 200, 2048), pair=PairWork(3.5, 400, 1, 1))
    uneven = replace(CUT, tasks=1)
    assert estimate(load, uneven, DEVICE).seconds > 1.05 * estimate(load, CUT, DEVICE).seconds


def test_the_cpu_that_is_here() -> None:
    for dtype in ("float32", "bfloat16", "float64"):
        found = cpu_device(dtype)
        assert found.machine == machine_for(dtype)
        assert found.threads == torch.get_num_threads()
        assert found.flops > 1e9
        assert found.bandwidth > 1e8
        assert 4096 <= found.l1 <= found.l2


def test_the_first_candidates_differ_in_what_matters() -> None:
    usual, *others = space("forward", "32", Specialization("float32", 64, 64))
    order = in_turns(usual, others, lambda cut: estimate(LOAD, cut, DEVICE).seconds)
    assert sorted(order, key=str) == sorted(others, key=str)
    first = order[:10]
    assert len({(c.tile, c.rows, c.vectors, c.keys) for c in first}) == 10
    times = [estimate(LOAD, cut, DEVICE).seconds for cut in first]
    assert times == sorted(times)
    assert {c.tasks for c in first} == {usual.tasks}
