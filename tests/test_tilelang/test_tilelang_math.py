"""Every function of TileLang's mathematics, as C, against wider arithmetic and against Python."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import resources

import numpy as np
import pytest
import torch

from attncompiler.backends.tilelang_expr import FLOAT_FUNCTIONS, INT_FUNCTIONS
from attncompiler.runtime.tilelang_serial import build
from attncompiler.runtime.triton_sources import import_source, stored
from tests.accuracy import Array, exact, points, ulps

# By our name: numpy's, and the largest error in units of the last place.
UNARY = {
    "exponential": ("exp", 1.0), "exponential2": ("exp2", 1.0), "exponential_minus_one": ("expm1", 1.0),
    "logarithm": ("log", 1.0), "logarithm2": ("log2", 1.0), "logarithm_one_plus": ("log1p", 1.0),
    "square_root": ("sqrt", 0.5), "reciprocal_square_root": ("rsqrt", 1.5), "hyperbolic_tangent": ("tanh", 2.5),
    "sigmoid": ("sigmoid", 2.5), "error_function": ("erf", 1.0), "sine": ("sin", 1.0), "cosine": ("cos", 1.0),
    "floor": ("floor", 0.0), "ceiling": ("ceil", 0.0), "truncate": ("trunc", 0.0), "round_half_even": ("round", 0.0),
    "absolute": ("abs", 0.0), "sign": ("sign", 0.0),
}  # fmt: skip
BINARY = ("divide", "floor_divide", "modulo", "power", "minimum", "maximum")
WHOLE_UNARY, WHOLE = ("sign_int", "bit_length", "absolute_int"), ("floor_divide_int", "modulo_int")
NUMBERS = [
    s * m
    for m in (0, 1e-45, 1e-30, 0.1, 0.5, 1, 1.5, 2.5, 3, 7, 1e5, 1e30, math.inf)
    for s in (1, -1)
]
WHOLES = [0, 1, -1, 2, -2, 7, -7, 8, 63, -64, 2**30, -(2**31), 2**31 - 1]

KERNEL = """

def kernel(dtype, length):
    @T.prim_func
    def attention(
        x: T.Tensor((length,), dtype), y: T.Tensor((length,), dtype), out: T.Tensor((COUNT, length), dtype),
    ):
        with T.Kernel(1, threads=1) as block:
            for i in T.serial(length):
                left = x[i]
                right = y[i]
LINES

    return attention
"""


def apply(names: tuple[str, ...], x: Array, y: Array | None = None) -> dict[str, Array]:
    """What each function makes of x, or of x and y."""
    given = "left" if y is None else "left, right"
    lines = [f"out[{n}, i] = T.Cast(dtype, {name}({given}))" for n, name in enumerate(names)]
    body = KERNEL.replace("LINES", "\n".join(" " * 16 + line for line in lines))
    functions = (resources.files("attncompiler.templates.tilelang") / "math.py").read_text()
    text = functions + body.replace("COUNT", str(len(names)))
    left, right = (torch.from_numpy(a.copy()) for a in (x, x if y is None else y))
    out = torch.empty(len(names), len(x), dtype=left.dtype)
    size = str(x.dtype), len(x)
    module = import_source(stored("tilelang_math", text))
    kernel = build("math", lambda: module.kernel(*size), ["x", "y", "out"], f"{text} {size}")
    kernel({"x": left, "y": right, "out": out})
    return dict(zip(names, out.numpy(), strict=True))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def pairs() -> tuple[Array, Array]:
    x, y = np.meshgrid(*[np.array([*NUMBERS, math.nan], np.float32)] * 2)
    random = np.random.default_rng(0)
    usual = random.standard_normal((2, 2000)).astype(np.float32) * np.float32(10)
    wholes = random.integers(-40, 40, (2, 2000)).astype(np.float32)
    left = np.concatenate([x.ravel(), usual[0], wholes[0] / 8, usual[0] ** 2])
    right = np.concatenate([y.ravel(), usual[1], wholes[1] / 4, wholes[1]])
    return left.astype(np.float32), right.astype(np.float32)


def test_every_function_is_tested() -> None:
    known = {*UNARY, *BINARY, *WHOLE_UNARY, *WHOLE}
    printed = {*FLOAT_FUNCTIONS.values(), *INT_FUNCTIONS.values()}
    assert {n for n in printed if not n.startswith("T.")} <= known


def test_functions_of_one_number() -> None:
    x = points(np.float32)
    for name, found in apply(tuple(UNARY), x).items():
        theirs, limit = UNARY[name]
        wide = exact(theirs, x)
        distance = ulps(found, wide)
        distance[np.abs(found - wide) < np.finfo(np.float32).tiny] = 0  # devices flush denormals
        at = int(distance.argmax())
        assert distance[at] <= limit, (name, x[at], found[at])


def test_functions_of_two_numbers() -> None:
    x, y = pairs()
    found = apply(BINARY, x, y)
    left = np.fmod(x, y)
    left = np.where((left != 0) & ((left < 0) != (y < 0)), left + y, left)
    np.testing.assert_array_equal(found["modulo"], left)
    np.testing.assert_array_equal(found["divide"], x / y)
    np.testing.assert_array_equal(found["minimum"], np.minimum(x, y))
    np.testing.assert_array_equal(found["maximum"], np.maximum(x, y))
    assert ulps(found["power"], np.power(np.longdouble(x), np.longdouble(y))).max() <= 1
    finite = np.isfinite(x) & np.isfinite(y) & (y != 0)
    quotient = np.floor_divide(np.float64(x[finite]), np.float64(y[finite]))
    assert ulps(found["floor_divide"][finite], quotient).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_functions_of_whole_numbers(dtype: type) -> None:
    x, y = (a.ravel() for a in np.meshgrid(*[np.array(WHOLES, dtype)] * 2))
    fits = ~((x == np.iinfo(dtype).min) & (y == -1))
    x, y = x[fits], y[fits]
    found = apply(WHOLE, x, y)
    some = y != 0
    np.testing.assert_array_equal(found["floor_divide_int"][some], x[some] // y[some])
    np.testing.assert_array_equal(found["modulo_int"][some], x[some] % y[some])
    assert not any(found[n][~some].any() for n in WHOLE)
    one = np.array([n for n in WHOLES if n != np.iinfo(dtype).min], dtype)
    found = apply(WHOLE_UNARY, one)
    assert found["sign_int"].tolist() == np.sign(one).tolist()
    assert found["bit_length"].tolist() == [int(n).bit_length() for n in one]
    assert found["absolute_int"].tolist() == np.abs(one).tolist()
