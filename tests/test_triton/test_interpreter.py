"""What Triton's interpreter gets wrong is right once repaired.

Without ``repair`` every test of a kernel fails, but for some of the cases beside the wrong ones, and for loops, tuples
and stored scalars, which were right.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from attncompiler.errors import InternalError
from attncompiler.runtime import triton_interpreter

NAN, INF = float("nan"), float("inf")


def equal(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@triton.jit
def products(a, b, out, size: tl.constexpr):
    i = tl.arange(0, size)
    at = i[:, None] * size + i[None, :]
    total = tl.full([size, size], 1.0, tl.float32)
    total = tl.dot(tl.load(a + at), tl.load(b + at), total)
    tl.store(out + at, tl.dot(tl.load(a + at), tl.trans(tl.load(b + at)), total))


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *EIGHT_BITS])
def test_products(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 16, 16).to(dtype)
    out = torch.empty(16, 16)
    products[(1,)](a, b, out, 16)
    a, b = a.double(), b.double()
    torch.testing.assert_close(out, (1 + a @ b + a @ b.T).float())


@triton.jit
def convert(x, out, size: tl.constexpr):
    i = tl.arange(0, size)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty))


def numbers() -> torch.Tensor:
    patterns = torch.randint(-(2**31), 2**31 - 1, (1024 - 272,), dtype=torch.int32)
    ties = [1.00390625, 1.01171875, 1 + 2**-11, 1 + 3 * 2**-11, 65519.9, 65520.0]
    special = torch.tensor([0.0, -0.0, INF, -INF, NAN, 1e-40, -1e-40, 3.4e38, 448.0, 464.0, *ties])
    return torch.cat([patterns.view(torch.float32), torch.randn(256), special])


@pytest.mark.parametrize("target", [*FLOATS, *EIGHT_BITS])
@pytest.mark.parametrize("source", [*FLOATS, *EIGHT_BITS])
def test_conversions_round_to_nearest(source: torch.dtype, target: torch.dtype) -> None:
    x = numbers().to(source)
    out = torch.empty(x.shape, dtype=target)
    convert[(1,)](x, out, x.numel())
    equal(out.double(), x.to(target).double())
    kept = ~x.double().isnan()
    equal(out.double().signbit()[kept], x.to(target).double().signbit()[kept])


@pytest.mark.parametrize("source", [torch.int32, torch.int64, torch.bool])
def test_integers_become_bfloat16(source: torch.dtype) -> None:
    x = torch.arange(-300, 212).to(source)
    out = torch.empty(512, dtype=torch.bfloat16)
    convert[(1,)](x, out, 512)
    equal(out, x.bfloat16())


@triton.jit
def arithmetic(x, y, out, size: tl.constexpr):
    i = tl.arange(0, size)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, a + b)
    tl.store(out + size + i, a * b - a)
    tl.store(out + 2 * size + i, tl.where(a < b, a, tl.abs(b)))
    tl.store(out + 3 * size + i, tl.maximum(-a, b))
    tl.store(out + 4 * size + i, tl.full([size], 1.5, out.dtype.element_ty) + a * 2.0)
    tl.store(out + 5 * size + i, tl.sum(a))
    tl.store(out + 6 * size + i, tl.max(a))


def test_bfloat16_arithmetic() -> None:
    x, y = torch.randn(2, 64).bfloat16()
    out = torch.empty(7, 64, dtype=torch.bfloat16)
    arithmetic[(1,)](x, y, out, 64)
    total = x.float().sum().bfloat16().expand(64)
    columns = [x + y, x * y - x, torch.where(x < y, x, y.abs()), torch.maximum(-x, y), 1.5 + x * 2]
    torch.testing.assert_close(out, torch.stack([*columns, total, x.max().expand(64)]))


@triton.jit
def row_sums(x, out, rows: tl.constexpr, columns: tl.constexpr):
    at = tl.arange(0, rows)[:, None] * columns + tl.arange(0, columns)[None, :]
    tl.store(out + tl.arange(0, rows), tl.sum(tl.load(x + at), 1))


def test_sums_of_bfloat16_rows() -> None:
    x, out = torch.randn(4, 8).bfloat16(), torch.empty(4, dtype=torch.bfloat16)
    row_sums[(1,)](x, out, 4, 8)
    torch.testing.assert_close(out, x.float().sum(1).bfloat16())


@triton.jit
def extrema(x, out, size: tl.constexpr):
    i = tl.arange(0, size)
    a = tl.load(x + i)
    tl.store(out + i, tl.maximum(a, 2.0))
    tl.store(out + size + i, tl.minimum(a, 2.0, propagate_nan=tl.PropagateNan.ALL))
    tl.store(out + 2 * size + i, tl.clamp(a, 0.0, 2.0))
    tl.store(out + 3 * size, tl.max(a))
    tl.store(out + 3 * size + 1, tl.min(a))


def test_extrema_pass_over_nans() -> None:
    out = torch.empty(14)
    extrema[(1,)](torch.tensor([1, NAN, 3, -1]), out, 4)
    equal(out, torch.tensor([2, 2, 3, 2, 1, NAN, 2, -1, 1, 0, 2, 0, 3, -1]))
    extrema[(1,)](torch.full((4,), NAN), out, 4)
    assert out[-2:].isnan().all()


@triton.jit
def overflowing(x, out, size: tl.constexpr):
    i = tl.arange(0, size)
    a = tl.load(x + i)
    tl.store(out + i, 1.0 / a + tl.log(a) + tl.exp(a * 1000.0))


def test_a_kernel_does_not_warn() -> None:
    out = torch.empty(4)
    overflowing[(1,)](torch.tensor([0.0, 1.0, -1.0, 2.0]), out, 4)
    equal(out, torch.tensor([NAN, INF, NAN, INF]))


@triton.jit
def fused(x, out):
    a = tl.load(x)
    tl.store(out, tl.fma(a, a, -(a * a)))
    tl.store(out + 1, tl.fma(tl.load(x + 1), tl.load(x + 2), tl.load(x + 3)))


def test_fma_rounds_once() -> None:
    # The exact sum of the second is below a tie of float32, by less than float64 can hold.
    x = torch.tensor([1.1, 2**-24 * (1 + 2**-23), 1 - 2**-23, 1 + 2**-23])
    out = torch.empty(2)
    fused[(1,)](x, out)
    square = x[0].double() ** 2
    equal(out, torch.stack([(square - (x[0] * x[0]).double()).float(), x[3]]))


@triton.jit
def atomics(at, values, out, size: tl.constexpr, exchange: tl.constexpr):
    i = tl.arange(0, size)
    v = tl.load(values + i)
    keep = i < size - 1
    old = tl.atomic_xchg(at + i // 2, v, keep) if exchange else tl.atomic_add(at + i // 2, v, keep)
    tl.store(out + i, old, keep)


@pytest.mark.parametrize(("dtype", "exchange"), [(torch.bfloat16, False), (torch.float32, True)])
def test_atomics(dtype: torch.dtype, exchange: bool) -> None:
    at, values = torch.tensor([1, -2, 3, -4]).to(dtype), torch.arange(8).to(dtype) / 4
    out, wanted, old = torch.zeros(8, dtype=dtype), at.clone(), torch.zeros(8, dtype=dtype)
    atomics[(1,)](at, values, out, 8, exchange)
    for j in range(7):
        old[j] = wanted[j // 2]
        wanted[j // 2] = values[j] if exchange else wanted[j // 2] + values[j]
    equal(at, wanted)
    equal(out, old)


@triton.jit
def add_block(into, x, size: tl.constexpr):
    i = tl.arange(0, size)
    into.atomic_add([4, 0], tl.load(x + i[:, None] * size + i[None, :]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_descriptors_add(dtype: torch.dtype) -> None:
    into, x = torch.ones(16, 16).to(dtype), torch.arange(256).view(16, 16).to(dtype)
    add_block[(1,)](TensorDescriptor.from_tensor(into, [16, 16]), x, 16)
    wanted = torch.ones(16, 16).to(dtype)
    wanted[4:] += x[:12]
    equal(into, wanted)


@triton.jit
def scalars(out, a, b, flag):
    tl.store(out, a * b)
    tl.store(out + 1, (a + 0.1).to(tl.float32))
    if flag:
        tl.store(out + 2, a)


def test_scalar_arguments_have_a_devices_types() -> None:
    out, a, b = torch.zeros(3), torch.tensor(0.1), torch.tensor(0.3)
    scalars[(1,)](out, 0.1, 0.3, True)
    equal(out, torch.stack([a * b, a + a, a]))


@triton.jit
def conditions(x, out, n, size: tl.constexpr):
    i = tl.arange(0, size)
    limit = n * 1.0
    tl.store(out + i, tl.where((tl.load(x + i) > 1.0) | (limit > 2.0), 1.0, 0.0))


def test_a_scalar_comparison_meets_a_block() -> None:
    out = torch.empty(4)
    conditions[(1,)](torch.arange(4.0), out, 2, 4)
    equal(out, torch.tensor([0.0, 0.0, 1.0, 1.0]))


@triton.jit
def sum_and_difference(x, y):
    return x + y, x - y


@triton.jit
def loops(x, out, n, size: tl.constexpr):
    i = tl.arange(0, size)
    a = tl.load(x + i)
    step = 0
    while step < n:
        a, b = sum_and_difference(a, 1.0)
        a = a * b
        step += 1
    tl.store(out + i, a)
    tl.store(out + size + i, 5.0)
    for k in tl.range(0, n, num_stages=2):
        a += k
    tl.store(out + 2 * size + i, a)


def test_loops_tuples_and_stored_scalars() -> None:
    x, out = torch.arange(4.0), torch.empty(12)
    loops[(1,)](x, out, 3, 4)
    for _ in range(3):
        x = (x + 1) * (x - 1)
    equal(out, torch.cat([x, torch.full((4,), 5.0), x + 3]))


def test_repairing_twice_changes_nothing() -> None:
    before = dict(vars(interpreter.InterpreterBuilder))
    triton_interpreter.repair()
    assert dict(vars(interpreter.InterpreterBuilder)) == before


def test_an_interpreter_that_is_built_otherwise_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(interpreter, "_attncompiler_repaired")
    monkeypatch.delattr(interpreter.InterpreterBuilder, "create_dot")
    with pytest.raises(InternalError, match=r"has no InterpreterBuilder\.create_dot"):
        triton_interpreter.repair()


def test_is_interpreting() -> None:
    assert triton_interpreter.is_interpreting()
    program = (
        "import sys; from attncompiler.runtime.triton_interpreter import is_interpreting, repair\n"
        "print(is_interpreting(), 'triton' in sys.modules); repair()\n"
        "import triton, os; os.environ['TRITON_INTERPRET'] = '1'; print(is_interpreting())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_works_while_triton_interprets(backend: str) -> None:
    def attention(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x).sin()

    x = torch.randn(1, 2, 8, 16)
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(attention, backend=backend)
    np.testing.assert_allclose(compiled(x).numpy(), attention(x).numpy(), rtol=1e-5, atol=1e-6)
