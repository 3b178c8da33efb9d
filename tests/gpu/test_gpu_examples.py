"""Every example on a CUDA device at sizes people use: outputs and gradients are those of the float64 oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cuda_calls import CudaCall

from attncompiler.cases import Case
from attncompiler.variant_file import load_variant
from tests.example_table import files

CALLS = [
    Case(B=2, H=8, G=2, M=500, N=777, D=64, Dv=64, q_start=277, seed=1),
    Case(B=1, H=4, G=4, M=1025, N=640, D=128, Dv=96, layout="swapped", seed=2),
    Case(B=3, H=2, G=1, M=1, N=333, D=64, Dv=64, q_start=332, seed=3),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_an_example(path: Path, dtype: str, device: torch.device, backend: str) -> None:
    if backend == "tilelang" and dtype == "float32":
        pytest.skip("TileLang multiplies float32 as tf32, which is another law")
    variant = load_variant(path)
    wrong = {
        str(case): CudaCall(variant, replace(case, dtype=dtype), device, backend).wrong()
        for case in CALLS
    }
    assert not any(wrong.values()), "\n".join(f"{c}\n{text}" for c, text in wrong.items())


@pytest.mark.parametrize("head_dim", [1, 16, 31, 72, 96, 192, 256, 512])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_head_dimensions(head_dim: int, dtype: str, device: torch.device) -> None:
    variant = load_variant(files()[0].with_name("alibi.py"))
    case = Case(B=1, H=2, G=1, M=129, N=257, D=head_dim, Dv=head_dim, dtype=dtype, q_start=128)
    assert not CudaCall(variant, case, device).wrong()
