"""What the TileLang backend refuses, before a kernel is launched, and what it says of itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attncompiler
from attncompiler.dsl import Tensor, Variant
from attncompiler.runtime import engines
from attncompiler.runtime.errors import DeviceError, DtypeError, LimitError, MissingTilelangError
from attncompiler.runtime.interpreting import SERIAL_SWITCH
from attncompiler.runtime.operator import Operator
from attncompiler.runtime.tilelang_launch import check_grid
from attncompiler.runtime.triton_launch import Tiling
from tests.triton_calls import engine_of


class _Gained(Variant):
    gain = Tensor("h")

    def score(self, s: Any, at: Any) -> Any:
        return s * self.gain[at.h]


def operator() -> Operator:
    op = attncompiler.compile(_Gained, backend="tilelang")
    assert isinstance(op, Operator)
    return op


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {n: torch.randn(1, 2, 5, 16).to(dtype) for n in "qkv"} | {"gain": torch.ones(2)}


def test_without_the_switch_kernels_need_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERIAL_SWITCH)
    with pytest.raises(
        DeviceError,
        match=rf'tilelang backend runs on CUDA(?s:.*)backend="auto"(?s:.*){SERIAL_SWITCH}=1',
    ):
        operator()(**inputs())


def test_element_types() -> None:
    with pytest.raises(
        DtypeError, match="the tilelang backend computes in float32, float64 is not"
    ):
        operator()(**inputs(torch.float64))
    with pytest.raises(DtypeError, match="as C to be checked, they know float32 only"):
        operator()(**inputs(torch.bfloat16))


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingTilelangError, match="pip install tilelang"):
        operator()(**inputs())


def test_more_heads_than_a_grid_counts() -> None:
    with pytest.raises(LimitError, match=r'number of heads(?s:.*)65535(?s:.*)backend="triton"'):
        check_grid(heads=70000, batch=1)


def test_a_tensor_may_be_longer_than_32_bits_count() -> None:
    class Table(Variant):
        table = Tensor("rows")

        def score(self, s: Any, at: Any) -> Any:
            return s + self.table[at.h]

    op = attncompiler.compile(Table, backend="tilelang")
    q, k, v = (torch.randn(1, 2, 5, 16) for _ in range(3))
    wanted = op(q, k, v, table=torch.zeros(9))
    assert torch.equal(op(q, k, v, table=torch.zeros(1).as_strided((2**31 + 5,), (0,))), wanted)


def test_warp_groups_apart_are_for_hopper() -> None:
    op = operator()
    engine_of(op).tiling = Tiling(128, 128, 8, 2, descriptors=True, apart=True)
    with pytest.raises(
        RuntimeError, match="apart: it is for Hopper and 4, 8 or 12 warps, not for cpu"
    ):
        op(**inputs())


def test_explain_names_the_backend() -> None:
    text = operator().explain()
    assert "Compiled for backend tilelang." in text
    assert "Tensors on CUDA devices: TileLang kernels (tilelang)." in text
