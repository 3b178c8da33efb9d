"""Every function of the mathematics headers, as lanes and as scalars, against wider arithmetic over the whole range."""

from __future__ import annotations

import math

import numpy as np
import pytest
from accuracy import exact, points, ulps
from cpp_harness import BUILDS, REALS, Function, library, runs_here

LIMITS = {
    "exp": 2.0, "exp2": 2.0, "expm1": 2.0, "log": 2.0, "log2": 2.0, "log1p": 2.0, "sqrt": 0.5, "rsqrt": 2.0,
    "tanh": 3.5, "sigmoid": 3.5, "erf": 2.0, "sin": 2.0, "cos": 2.0,
    "floor": 0.0, "ceil": 0.0, "trunc": 0.0, "round": 0.0,
}  # fmt: skip
FUNCTIONS = [
    *(Function(f"lane_{f}", f"{f}(x)", (("vreal", "x"),), "vreal") for f in LIMITS),
    *(Function(f"one_{f}", f"{f}(x)", (("real", "x"),), "real") for f in LIMITS),
    Function("lane_pow", "pow(x, y)", (("vreal", "x"), ("vreal", "y")), "vreal"),
    Function("weight_exp", "exp_nonpositive(x)", (("vreal", "x"),), "vreal"),
    Function("weight_exp2", "exp2_nonpositive(x)", (("vreal", "x"),), "vreal"),
    Function("coarse_exp", "exp_nonpositive<3>(x)", (("vreal", "x"),), "vreal"),
    Function("coarse_exp2", "exp2_nonpositive<3>(x)", (("vreal", "x"),), "vreal"),
]


@pytest.fixture(scope="module", params=[(r, b) for r in REALS for b in BUILDS], ids="-".join)
def compiled(request: pytest.FixtureRequest) -> tuple[str, dict]:
    real, build = request.param
    if not runs_here(build):
        pytest.skip(f"this machine has no {build} instructions")
    return real, library(real, build, FUNCTIONS)


@pytest.fixture(autouse=True)
def _quiet() -> object:
    with np.errstate(all="ignore"):
        yield


def test_functions_are_accurate_everywhere(compiled: tuple[str, dict]) -> None:
    real, functions = compiled
    x = points(REALS[real])
    worst = {}
    for name, limit in LIMITS.items():
        mine = x if real == "float" or name != "erf" else x[::20]
        wanted = exact(name, mine)
        for form in ("lane", "one"):
            found = functions[f"{form}_{name}"](mine)
            distance = ulps(found, wanted)
            at = int(distance.argmax())
            if distance[at] > limit:
                worst[f"{form}_{name}"] = (distance[at], mine[at], found[at], wanted[at])
    assert not worst


@pytest.mark.parametrize(
    "name", ["expm1", "log1p", "tanh", "erf", "sin", "floor", "ceil", "trunc", "round", "sqrt"]
)
def test_negative_zero_stays(compiled: tuple[str, dict], name: str) -> None:
    real, functions = compiled
    zeros = np.array([-0.0, 0.0], REALS[real])
    for form in ("lane", "one"):
        found = functions[f"{form}_{name}"](zeros)
        assert (found == 0).all()
        assert np.signbit(found).tolist() == [True, False]


def test_powers(compiled: tuple[str, dict]) -> None:
    real, functions = compiled
    bases = np.array(
        [0.0, -0.0, 0.5, 1, 2, 10, -2, -0.3, 1e-30, math.inf, -math.inf, math.nan], REALS[real]
    )
    powers = np.array([0.0, 1, -1, 2, 3, -3, 0.5, 2.7, math.inf, -math.inf, math.nan], REALS[real])
    x, y = (a.ravel() for a in np.meshgrid(bases, powers))
    found = functions["lane_pow"](x, y)
    assert ulps(found, np.power(np.longdouble(x), np.longdouble(y))).max() <= 2


@pytest.mark.parametrize("name", ["exp", "exp2"])
def test_exponentials_of_the_inner_loop(compiled: tuple[str, dict], name: str) -> None:
    """Exact at 0 and -inf, 0 below the normal range, NaN for NaN; elsewhere as good as weights need.

    Their error counts against the largest weight of the row, which is 1: a weight of e^-x may have a relative
    error that grows with x, because x itself was rounded.
    """
    real, functions = compiled
    dtype = REALS[real]
    info = np.finfo(dtype)
    # Whole numbers just inside the normal range.
    lowest = math.ceil(math.log(info.tiny)) if name == "exp" else info.minexp
    x = np.concatenate(
        [-np.linspace(0, -lowest, 20001), [0, -math.inf, math.nan, lowest * 1.1, -1e30]]
    ).astype(dtype)
    wanted = exact(name, x)
    fine, coarse = functions[f"weight_{name}"](x), functions[f"coarse_{name}"](x)
    for found in (fine, coarse):
        assert found[-5] == 1
        assert found[-4] == 0
        assert math.isnan(found[-3])
        assert (found[-2:] == 0).all()
    inside = np.isfinite(x) & (x > lowest)
    relative = np.abs(fine[inside] / wanted[inside] - 1)
    growth = 0.6 if name == "exp" else 0.0
    assert (relative <= info.eps * (1.6 + growth * np.abs(x[inside]))).all()
    # Enough for bfloat16 (2^-9) and for float16 (2^-12).
    assert np.abs(coarse[inside] / wanted[inside] - 1).max() < 2.0**-12
    # The largest weight never grows beyond 1, and weights never change sign.
    assert fine[inside].max() == 1
    assert min(fine[inside].min(), coarse[inside].min()) >= 0
