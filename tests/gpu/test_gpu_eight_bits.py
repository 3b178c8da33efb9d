"""8-bit inputs on a CUDA device: as exact as bfloat16 attention on the numbers that they hold, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attncompiler
import attncompiler.oracle
from attncompiler.backends.gpu_targets import EIGHT_BITS
from attncompiler.cases import Case
from attncompiler.check import Checker
from attncompiler.dsl import Variant
from attncompiler.runtime.errors import DtypeError, EightBitGradientError
from attncompiler.runtime.tilings import choice_of
from attncompiler.variant_file import load_variant
from attncompiler.yardstick import compare
from tests.example_table import files

NAMES = ("alibi", "packed_documents", "reluformer", "sigmoid", "standardized_softmax")
SIZES = [(64, 64), (128, 128), (80, 72), (31, 17), (256, 256)]


def known(dtype: str, device: torch.device) -> torch.dtype:
    """The type; the test is skipped where the device does not multiply it."""
    if why := choice_of(device).target.lacks(dtype):
        pytest.skip(why)
    kind = getattr(torch, dtype)
    assert isinstance(kind, torch.dtype)
    return kind


def wrong(variant: Variant, case: Case, device: torch.device) -> str:
    """What is further off than twice plain PyTorch in bfloat16; empty when nothing is."""
    mine = Checker(variant, backend="triton")
    case = mine.fitted(case)
    q, k, v, tensors = mine.inputs(case)
    q, k, v = (x.to(device) for x in (q, k, v))
    tensors = {n: x.to(device) for n, x in tensors.items()}

    def oracle(dtype: torch.dtype) -> Tensor:
        return attncompiler.oracle.attention(
            variant, q, k, v, q_start=case.q_start, tensors=tensors, dtype=dtype
        ).out

    out = mine.operator(q, k, v, q_start=case.q_start, **tensors)
    found = compare("out", out, oracle(torch.bfloat16), oracle(torch.float64))
    return "" if found.passed else f"{case}: error {found.error:.2e}, limit {found.limit:.2e}"


@pytest.mark.parametrize("dtype", EIGHT_BITS)
@pytest.mark.parametrize("dims", SIZES, ids=str)
def test_sizes(dims: tuple[int, int], dtype: str, device: torch.device) -> None:
    known(dtype, device)
    head_dim, value_dim = dims
    case = Case(B=2, H=4, G=2, M=300, N=555, D=head_dim, Dv=value_dim, dtype=dtype, q_start=255)
    assert not wrong(load_variant(files()[0].with_name("alibi.py")), case, device)


@pytest.mark.parametrize("dtype", EIGHT_BITS)
@pytest.mark.parametrize("name", NAMES)
def test_variants(name: str, dtype: str, device: torch.device) -> None:
    known(dtype, device)
    case = Case(B=2, H=4, G=2, M=129, N=333, D=64, Dv=64, dtype=dtype, layout="swapped", seed=3)
    assert not wrong(load_variant(files()[0].with_name(f"{name}.py")), case, device)


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_products_that_cancel(dtype: str, device: torch.device) -> None:
    """Two features a thousand times as large as the rest, with opposite signs: sums in 14 bits lose what is left."""
    kind = known(dtype, device)
    q, k, v = (torch.randn(1, 1, n, 64, device=device) for n in (64, 256, 256))
    q[..., [3, 7]], k[..., 3], k[..., 7] = 40, 20, -20
    q, k, v = (x.to(kind) for x in (q, k, v))

    def plain(dtype: torch.dtype) -> Tensor:
        a, b, c = (x.to(dtype) for x in (q, k, v))
        return torch.softmax(a @ b.mT / 8, -1) @ c

    out = attncompiler.compile(Variant, backend="triton")(q, k, v)
    found = compare("out", out, plain(torch.bfloat16), plain(torch.float64))
    assert found.passed, (found.error, found.limit)


def test_what_is_refused(device: torch.device) -> None:
    op: Any = attncompiler.compile(Variant)
    has = choice_of(device).target
    for dtype in EIGHT_BITS:
        q = torch.randn(1, 1, 8, 64, device=device).to(getattr(torch, dtype))
        if has.lacks(dtype):
            with pytest.raises(DtypeError, match=f"not {dtype}"):
                op(q, q, q)
        else:
            assert op(q, q, q).dtype == torch.bfloat16
        with pytest.raises(EightBitGradientError):
            op(q.requires_grad_(), q, q)
