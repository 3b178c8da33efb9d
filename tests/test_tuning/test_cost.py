"""The predicted time reproduces what it was fitted to, and names the right bound at the extremes."""

from __future__ import annotations

import math

import pytest
from footprints import Print

from attncompiler.backends.gpu_targets import TARGETS, target_of
from attncompiler.tuning.cost import Attention, attention_work, predict

H100 = target_of("sm_90")
BIG = Print(208, 164864, 8)


def size(dim: int, dtype: str = "bfloat16", density: float = 1.0) -> Attention:
    return Attention(1, 2048 // dim, 2048 // dim, 16384, 16384, dim, dim, dtype, density)


@pytest.mark.parametrize(
    ("dim", "block", "built", "published"),
    [(128, (128, 64), Print(255, 132096, 4), 480), (64, (128, 128), Print(175, 82944, 8), 403)],
)
def test_published_figures(
    dim: int, block: tuple[int, int], built: Print, published: float
) -> None:
    work = attention_work(size(dim), *block)
    found = work.flops / predict(work, H100, built).seconds / 1e12
    assert found == pytest.approx(published, rel=0.07)


def test_the_work_of_a_forward_pass() -> None:
    work = attention_work(Attention(2, 8, 2, 256, 1024, 64, 32), 128, 64)
    pairs = 2 * 8 * 256 * 1024
    assert work.flops == 2 * pairs * (64 + 32)
    assert work.exponentials == pairs
    assert work.steps == pairs / (128 * 64)
    assert work.blocks == 2 * 8 * 2
    rows, stored = 2 * 8 * 256, 2 * 2 * 1024
    assert work.bytes == 2 * (rows + stored) * (64 + 32) + 4 * rows
    eight = attention_work(Attention(2, 8, 2, 256, 1024, 64, 32, "float8_e4m3fn"), 128, 64)
    assert eight.bytes == (rows + stored) * (64 + 32) + rows * 32 + 4 * rows  # bfloat16 comes out


def test_the_backward_kernels_together_do_seven_products() -> None:
    s = size(128)
    forward = attention_work(s, 128, 128).flops
    rows = attention_work(s, 128, 64, "rows")
    columns = attention_work(s, 64, 128, "columns")
    assert rows.flops + columns.flops == 3.5 * forward
    assert rows.blocks == columns.blocks == 16 * 128


def test_bounds() -> None:
    small = Print(128, 40000, 4)
    assert predict(attention_work(size(128), 128, 128), H100, BIG).bound == "compute"
    assert predict(attention_work(size(16), 128, 128), H100, small).bound == "exponentials"
    one_query = Attention(32, 32, 8, 1, 32768, 128, 128)
    assert predict(attention_work(one_query, 1, 128), H100, small).bound == "bandwidth"
    tiny = Attention(1, 2, 2, 64, 64, 64, 64)
    assert predict(attention_work(tiny, 64, 64), H100, small).bound == "launch"


def test_half_the_pairs_take_half_the_time_and_a_block_too_many_takes_longer() -> None:
    full, causal = (
        predict(attention_work(size(128, density=d), 128, 128), H100, BIG).seconds for d in (1, 0.5)
    )
    assert 0.48 < causal / full < 0.53
    waves = [
        predict(
            attention_work(Attention(1, h, h, 128, 8192, 128, 128), 128, 128), H100, BIG
        ).seconds
        for h in (66, 132, 133, 264)
    ]
    assert waves[0] == pytest.approx(waves[1])
    assert waves[1] < 0.6 * waves[2]
    assert waves[2] == pytest.approx(waves[3])


def test_float32_is_slower_everywhere() -> None:
    for target in TARGETS.values():
        built = Print(100, 32768, 4)
        fast, slow = (
            predict(attention_work(size(64, dtype), 64, 64), target, built).seconds
            for dtype in ("bfloat16", "float32")
        )
        assert fast < slow < math.inf


def test_what_does_not_fit_takes_forever() -> None:
    work = attention_work(size(128), 128, 128)
    assert predict(work, H100, Print(255, num_warps=16)).seconds == math.inf
