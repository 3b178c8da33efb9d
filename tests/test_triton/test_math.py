"""Every function of the Triton mathematics, on blocks, scalars and literals, against wider arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from accuracy import Array, exact, points, ulps
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from attncompiler.templates.triton import math as functions

# The largest error in units of the last place: with numpy's builtins, of which the logarithm is off by 3, and with
# those of a device.
LIMITS = {
    "exponential": ("exp", 2.0, 4.5),
    "exponential2": ("exp2", 2.0, 4.0),
    "exponential_minus_one": ("expm1", 2.0, 2.0),
    "logarithm": ("log", 3.0, 2.0),
    "logarithm2": ("log2", 2.0, 2.0),
    "logarithm_one_plus": ("log1p", 4.0, 3.0),
    "square_root": ("sqrt", 0.5, 0.5),
    "reciprocal_square_root": ("rsqrt", 2.0, 3.0),
    "hyperbolic_tangent": ("tanh", 2.0, 4.0),
    "sigmoid": ("sigmoid", 3.0, 7.0),
    "error_function": ("erf", 2.0, 2.0),
    "sine": ("sin", 2.0, 2.0),
    "cosine": ("cos", 2.0, 2.0),
    "truncate": ("trunc", 0.0, 0.0),
    "round_half_even": ("round", 0.0, 0.0),
}
MAGNITUDES = [
    0.0,
    1e-45,
    1e-40,
    1e-30,
    0.1,
    0.3,
    0.5,
    1,
    1.5,
    2,
    2.5,
    3,
    7,
    10,
    1e5,
    16777217,
    1e30,
]
NUMBERS = [s * m for m in [*MAGNITUDES, 3.4e38, math.inf] for s in (1, -1)] + [math.nan]


@triton.jit
def unary(x, out, function: tl.constexpr, count, size: tl.constexpr):
    i = tl.arange(0, size)
    tl.store(out + i, function(tl.load(x + i, mask=i < count, other=1)), mask=i < count)


@triton.jit
def unary_scalars(x, out, function: tl.constexpr, count, size: tl.constexpr):
    for i in range(count):
        tl.store(out + i, function(tl.load(x + i)))


@triton.jit
def binary(x, y, out, function: tl.constexpr, count, size: tl.constexpr):
    i = tl.arange(0, size)
    left, right = tl.load(x + i, mask=i < count, other=1), tl.load(y + i, mask=i < count, other=1)
    tl.store(out + i, function(left, right), mask=i < count)


@triton.jit
def binary_mixed(x, y, out, function: tl.constexpr, literal: tl.constexpr, size: tl.constexpr):
    """Scalars, then a scalar and a block, then a literal and a block, either way round."""
    i = tl.arange(0, size)
    tl.store(out, function(tl.load(x), tl.load(y)))
    tl.store(out + 1 + i, function(tl.load(x), tl.load(y + i)))
    tl.store(out + 1 + size + i, function(tl.load(x + i), tl.load(y)))
    tl.store(out + 1 + 2 * size + i, function(literal, tl.load(y + i)))
    tl.store(out + 1 + 3 * size + i, function(tl.load(x + i), literal))


def apply(kernel: Callable, function: str, *arguments: Array) -> Array:
    tensors = [torch.from_numpy(a) for a in arguments]
    out = torch.empty_like(tensors[0])
    size = triton.next_power_of_2(out.numel())
    kernel[(1,)](*tensors, out, getattr(functions, function), out.numel(), size)
    return out.numpy()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def worst(function: str, x: Array) -> tuple:
    found, wanted = apply(unary, function, x), exact(LIMITS[function][0], x)
    distance = ulps(found, wanted)
    at = int(distance.argmax())
    return distance[at], x[at], found[at], wanted[at]


@pytest.mark.parametrize("function", LIMITS)
def test_functions_are_accurate_everywhere(function: str) -> None:
    result = worst(function, points(np.float32))
    assert result[0] <= LIMITS[function][1], result


@pytest.mark.parametrize("function", LIMITS)
def test_functions_are_accurate_with_the_builtins_of_a_device(
    function: str, device_builtins: None
) -> None:
    result = worst(function, points(np.float32))
    assert result[0] <= LIMITS[function][2], result


@pytest.mark.parametrize("function", LIMITS)
def test_scalars_are_as_blocks(function: str) -> None:
    x = np.array([*NUMBERS[::3], math.nan], np.float32)
    np.testing.assert_array_equal(apply(unary_scalars, function, x), apply(unary, function, x))


@pytest.mark.parametrize(
    "function",
    ["exponential_minus_one", "logarithm_one_plus", "hyperbolic_tangent", "error_function", "sine",
     "truncate", "round_half_even", "square_root"],
)  # fmt: skip
def test_negative_zero_stays(function: str) -> None:
    found = apply(unary, function, np.array([-0.0, 0.0], np.float32))
    assert (found == 0).all()
    assert np.signbit(found).tolist() == [True, False]


@pytest.mark.parametrize("function", ["exponential_minus_one", "logarithm_one_plus",
                                      "hyperbolic_tangent", "error_function", "sine"])  # fmt: skip
def test_small_arguments_keep_their_digits(function: str, device_builtins: None) -> None:
    x = (10.0 ** np.linspace(-44, -1, 4000)).astype(np.float32)
    assert max(worst(function, x)[0], worst(function, -x)[0]) <= LIMITS[function][2]


def test_sign() -> None:
    x = np.array([2, 0, -0.0, -3, math.inf, -math.inf, math.nan], np.float32)
    assert apply(unary, "sign", x).tolist() == torch.sign(torch.from_numpy(x)).tolist()


def pairs() -> tuple[Array, Array]:
    x, y = np.meshgrid(*[np.array(NUMBERS, np.float32)] * 2)
    random = np.random.default_rng(0)
    patterns = random.integers(0, 2**32, (2, 3000), dtype=np.uint32).view(np.float32)
    usual = random.standard_normal((2, 3000)).astype(np.float32) * np.float32(10)
    wholes = random.integers(-40, 40, (2, 3000)).astype(np.float32)
    x = np.concatenate([x.ravel(), patterns[0], usual[0], wholes[0] / 8, wholes[0], usual[0] ** 2])
    y = np.concatenate([y.ravel(), patterns[1], usual[1], wholes[1] / 4, usual[1], wholes[1]])
    return x.astype(np.float32), y.astype(np.float32)


@pytest.mark.parametrize("builtins", ["exact", "device"])
def test_powers(builtins: str, request: pytest.FixtureRequest) -> None:
    if builtins == "device":
        request.getfixturevalue("device_builtins")
    x, y = pairs()
    near_one = (1 + np.linspace(-1e-3, 1e-3, 4001)).astype(np.float32)
    x = np.concatenate([x, near_one, np.abs(x)])
    y = np.concatenate([y, np.linspace(-8e4, 8e4, 4001).astype(np.float32), y])
    found, wanted = apply(binary, "power", x, y), np.power(np.longdouble(x), np.longdouble(y))
    distance = ulps(found, wanted)
    at = int(distance.argmax())
    assert distance[at] <= (2 if builtins == "exact" else 4.5), (
        x[at],
        y[at],
        found[at],
        wanted[at],
    )


def test_remainders_and_floors_are_exact() -> None:
    x, y = pairs()
    left = np.fmod(x, y)
    left = np.where((left != 0) & ((left < 0) != (y < 0)), left + y, left)
    np.testing.assert_array_equal(apply(binary, "modulo", x, y), left)
    finite = np.isfinite(x) & np.isfinite(y) & (y != 0)
    quotient = np.floor_divide(np.float64(x[finite]), np.float64(y[finite]))
    assert ulps(apply(binary, "floor_divide", x[finite], y[finite]), quotient).max() <= 1
    edges = np.float32(
        [[1, 0, -1, math.nan, 1, 1, -1, -math.inf], [0, 0, 0, 1, 0.1, math.inf, math.inf, 2]]
    )
    wanted = [math.inf, math.nan, -math.inf, math.nan, 9, 0, -1, math.nan]
    np.testing.assert_array_equal(apply(binary, "floor_divide", *edges), wanted)


@pytest.mark.parametrize("function", ["maximum", "minimum", "fold_max", "fold_min"])
def test_extrema(function: str) -> None:
    x, y = pairs()
    passing = {"fold_max": np.fmax, "fold_min": np.fmin}
    wanted = (passing.get(function) or getattr(np, function))(x, y)
    np.testing.assert_array_equal(apply(binary, function, x, y), wanted)


def floor_of(x: int, y: int) -> int:
    return x // y if y else 0


def rest_of(x: int, y: int) -> int:
    return x % y if y else 0


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers(dtype: type) -> None:
    info = np.iinfo(dtype)
    edges = [*range(-9, 10), 31, -32, 1000, info.max, info.max - 1, -info.max, 1 << 30, -(1 << 24)]
    x, y = (a.ravel().astype(dtype) for a in np.meshgrid(edges, edges))
    numbers = list(zip(x.tolist(), y.tolist(), strict=True))
    wanted = [floor_of(a, b) for a, b in numbers]
    assert apply(binary, "floor_divide_int", x, y).tolist() == wanted
    assert apply(binary, "modulo_int", x, y).tolist() == [rest_of(a, b) for a, b in numbers]
    assert apply(binary, "maximum", x, y).tolist() == np.maximum(x, y).tolist()
    assert apply(binary, "minimum", x, y).tolist() == np.minimum(x, y).tolist()
    for kernel in (unary, unary_scalars):
        some = np.array(edges, dtype)
        assert apply(kernel, "sign_int", some).tolist() == np.sign(some).tolist()
        assert apply(kernel, "bit_length", some).tolist() == [abs(e).bit_length() for e in edges]
    least = np.array([info.min], dtype)
    assert apply(binary, "floor_divide_int", least, -np.ones_like(least)).tolist() == [info.min]
    assert apply(binary, "modulo_int", least, -np.ones_like(least)).tolist() == [0]


@pytest.mark.parametrize(
    "function",
    ["power", "modulo", "floor_divide", "divide", "maximum", "minimum", "modulo_int", "floor_divide_int"],
)  # fmt: skip
def test_scalars_and_literals_meet_blocks(function: str) -> None:
    whole = function.endswith("_int")
    x = np.array([7, -2, 5, 0], np.int32) if whole else np.array([2.5, 0.5, 3, 7], np.float32)
    y = np.array([3, 2, -3, 4], np.int32) if whole else np.array([1.5, -2, 0.25, 2], np.float32)
    literal = 5 if whole else 2.5
    out = torch.empty(17, dtype=torch.int32 if whole else torch.float32)
    arguments = torch.from_numpy(x), torch.from_numpy(y)
    binary_mixed[(1,)](*arguments, out, getattr(functions, function), literal, 4)
    fixed = np.full_like(x, literal)
    left = np.concatenate([x[:1], x[[0] * 4], x, fixed, x])
    right = np.concatenate([y[:1], y, y[[0] * 4], y, fixed])
    np.testing.assert_array_equal(out.numpy(), apply(binary, function, left, right))


def flushed(x: Array) -> Array:
    """Denormals as zeros."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


@pytest.fixture
def device_builtins(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's arithmetic at its worst: errors up to those documented, denormals taken for zeros."""
    random = np.random.default_rng(1)

    def approximate(
        operation: Callable, relative: float, units: float = 0, flush: bool = True
    ) -> Callable:
        flush_ = flushed if flush else np.asarray

        def method(self: object, *handles: TensorHandle) -> TensorHandle:
            values = operation(*(flush_(h.data).astype(np.float64) for h in handles))
            unit = np.spacing(np.abs(values.astype(np.float32))) if units else np.abs(values)
            off = np.where(np.isfinite(unit), unit, 0) * (units or relative)
            values += off * random.choice([-1.0, -0.5, 0.0, 0.5, 1.0], values.shape)
            return TensorHandle(flush_(values.astype(np.float32)), handles[0].dtype.scalar)

        return method

    def erf(x: Array) -> Array:
        return torch.erf(torch.from_numpy(x)).numpy()

    unit = 2.0**-24
    for name, operation, error in (
        ("exp2", np.exp2, 2**-22.5), ("rsqrt", lambda x: 1 / np.sqrt(x), 2**-22.9),
        ("log", np.log, unit), ("log2", np.log2, unit), ("sin", np.sin, unit), ("erf", erf, unit),
        ("cos", np.cos, unit), ("floor", np.floor, 0.0), ("ceil", np.ceil, 0.0),
    ):  # fmt: skip
        monkeypatch.setattr(InterpreterBuilder, f"create_{name}", approximate(operation, error))
    divide = approximate(np.divide, 0.0, units=2, flush=False)
    monkeypatch.setattr(InterpreterBuilder, "create_fdiv", divide)
