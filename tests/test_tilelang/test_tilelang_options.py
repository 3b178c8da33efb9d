"""What only tuning chooses of TileLang's kernels, the order of blocks and where operands lie: no number differs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attncompiler.backends.gpu_targets import target_of
from attncompiler.backends.gpu_templates import _environment
from attncompiler.backends.tile_config import Config
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant, causal
from attncompiler.runtime import packaged_tilelang, triton_engine
from attncompiler.runtime.operator import Operator
from attncompiler.runtime.tilelang_serial import build
from attncompiler.runtime.tilings import Tilings, UnfitError
from attncompiler.runtime.triton_launch import Tiling
from attncompiler.timing import Timing
from attncompiler.tuning import records, tuner
from tests.gradients import describe
from tests.triton_calls import engine_of

USUAL = Tiling(64, 64, 4, 2)
# Three heads at a time, of four of queries and of two of keys: the last section is shorter, and there is but one.
CALL = Case(B=2, H=2, G=1, M=130, N=131, D=16, Dv=16, q_start=1, layout="swapped", seed=1)
_ORDER = """
import tilelang.language as T


def kernel():
    B, H, M, length = (T.dynamic(name) for name in ("B", "H", "M", "length"))

    @T.prim_func
    def attention(rows: T.Tensor((B, H, M), "int32"), found: T.Tensor((length,), "int32"), raster: T.int32):
        with T.Kernel(T.ceildiv(M, 16), H, B, threads=1) as (x, y, z):
{% filter indent(12, true) %}
{{ parts.order("M", "16", "H", "i_h") }}
{% endfilter %}
            found[line] = (i_b * H + i_h) * 1000 + turn

    return attention
"""


class Past(Variant):
    def mask(self, at: Any) -> Any:
        return causal(at)


def by_turns(heads: int, blocks: int, raster: int) -> list[int]:
    """Block after block: 1000 for each head before, and which block of the head it is."""
    sections = [range(h, min(h + raster, heads)) for h in range(0, heads, raster)]
    return [1000 * h + turn for those in sections for turn in range(blocks) for h in those]


def test_the_order_of_blocks(tmp_path: Path) -> None:
    text = '{% import "parts.py.j2" as parts with context %}' + _ORDER
    path = tmp_path / "order.py"
    path.write_text(_environment("tilelang").from_string(text).render())
    spec = importlib.util.spec_from_file_location("order_of_blocks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = build("order", module.kernel, ("rows", "found", "raster"), path.read_text())
    for batch, heads, rows in ((1, 1, 5), (2, 3, 70), (3, 5, 33)):
        count, blocks = batch * heads, -(-rows // 16)
        for raster in (1, 2, 3, 4, 7, count, 10**9):
            found = torch.full((count * blocks,), -1, dtype=torch.int32)
            shaped = torch.empty(batch, heads, rows, dtype=torch.int32)
            run({"rows": shaped, "found": found, "raster": raster})
            assert found.tolist() == by_turns(count, blocks, raster), (batch, heads, rows, raster)


@pytest.fixture(scope="module")
def past() -> Checker:
    return Checker(Past(), backend="tilelang", gradients=True)


@pytest.mark.parametrize(
    "tiling", [replace(USUAL, raster=3), replace(USUAL, held=True)], ids=["raster", "held"]
)
def test_options_change_no_number(past: Checker, tiling: Tiling) -> None:
    backward = replace(tiling, held=False)
    engine = engine_of(past.operator)
    engine.fixed = {"forward": tiling, "rows": backward, "columns": backward}
    engine.forget()
    outcome = past.run(CALL)
    assert outcome.passed, outcome.describe()
    assert not describe(past.gradients(CALL))


@pytest.mark.parametrize(
    ("kind", "asked", "why"),
    [
        ("forward", {"PERSISTENT": True}, "only kernels of Triton are persistent or chunked"),
        ("rows", {"CHUNK": 64}, "only kernels of Triton are persistent or chunked"),
        ("columns", {"HELD": True}, "the kernel columns holds no rows in registers"),
    ],
)
def test_what_a_kernel_cannot(past: Checker, kind: str, asked: dict[str, Any], why: str) -> None:
    sources, dims = engine_of(past.operator).sources, ("float32", 16, 16)
    _, backward = sources.backward(dims, {}, frozenset())
    module = sources.forward(dims, {}) if kind == "forward" else backward
    q = torch.empty(1, 1, 5, 16)
    with pytest.raises(UnfitError) as caught:
        getattr(module, kind)[1](q_pointer=q, H=1, G=1, DESCRIPTORS=False, **asked)
    assert why in str(caught.value.__cause__)


def test_tuning_tries_and_keeps_an_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks in another order win; warp groups apart are refused here, and drop out."""
    choices = [USUAL, replace(USUAL, descriptors=True, apart=True), replace(USUAL, raster=4)]
    monkeypatch.setattr(records, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(triton_engine, "tilings", lambda *_, **__: Tilings(choices))

    def interleaved(calls: Mapping[str, Callable[[], Any]], **more: Any) -> dict[str, Timing]:
        return {n: Timing((1.0 if n == "0" else 0.5,) * 3) for n in calls}

    monkeypatch.setattr(tuner, "interleaved", interleaved)
    q, k, v = (torch.randn(1, 1, 20, 16) for _ in range(3))
    op = compile_variant(Past, backend="tilelang")
    assert isinstance(op, Operator)
    (found,) = op.tune(q, k, v)
    assert found.winner == choices[2]
    (file,) = (tmp_path / "cache").rglob("*.json")
    trials = [(Tiling(**t), ratio) for t, ratio in json.loads(file.read_text())["trials"]]
    assert trials == [(choices[0], 1.0), (choices[1], float("inf")), (choices[2], 0.5)]
    later = compile_variant(Past, backend="tilelang")
    assert isinstance(later, Operator)
    torch.testing.assert_close(later(q, k, v), op(q, k, v), rtol=0, atol=0)
    (site,) = engine_of(later)._sites.values()
    assert site.tilings.current == choices[2]


def test_a_package_without_tilelang_has_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its binaries are those of the first configuration, whose blocks come in any order."""
    first = Config(128, 64, 8, 2, descriptors=True)
    others = [replace(first, raster=4), replace(first, apart=True), Config(64, 64, 4, 2)]
    listed = [[*astuple(c)] for c in (first, *others)]
    binary = {"arch": "sm_90", "kernel": "forward", "binary": "x.cubin"}
    kernel = {"tiles": {"forward": {"sm_90": listed}}, "binaries": [binary]}
    kernels: Any = SimpleNamespace(find=lambda *_: kernel)
    monkeypatch.setattr(packaged_tilelang, "find_spec", lambda name: None)
    modules = object.__new__(packaged_tilelang.PackagedTilelang)
    modules.kernels = kernels
    dims = "bfloat16", 64, 64
    found = modules.configs("forward", target_of("sm_90"), dims)
    assert found == [first, replace(first, raster=4)]
