"""Judges functions of floats: arguments of every kind, exact values, and distances in units of the last place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


def points(dtype: type[np.floating]) -> Array:
    """Every kind of number: random bit patterns (denormals, NaNs among them), usual sizes, edges and specials."""
    random = np.random.default_rng(0)
    word = np.uint32 if dtype is np.float32 else np.uint64
    info = np.finfo(dtype)
    size = 4000
    patterns = random.integers(0, np.iinfo(word).max, size, dtype=word, endpoint=True).view(dtype)
    usual = [random.standard_normal(size) * scale for scale in (1e-3, 0.3, 1, 10, 100, 1000, 1e4)]
    near_one = 1 + random.standard_normal(size) * 0.01
    tiny, least = info.tiny, info.smallest_subnormal
    edges = [
        tiny,
        tiny / 2,
        least,
        info.max,
        88.72,
        88.73,
        103.9,
        104.1,
        149.5,
        127.99,
        128,
        709.78,
        745.1,
        1023.99,
    ]
    halves = [0.5, 1.5, 2.5, 3.5, 4194304.5, 8388607.5, 4503599627370495.5, 4503599627370497]
    positive = np.array([0.0, 1, 2, math.inf, math.nan, *edges, *halves])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate(
            [x.astype(dtype) for x in (patterns, *usual, near_one, positive, -positive)]
        )


def exact(name: str, x: Array) -> Array:
    """The function in 80-bit arithmetic, or in double where floats are judged and numpy has none."""
    wide = np.longdouble(x)
    match name:
        case "rsqrt":
            return 1 / np.sqrt(wide)
        case "sigmoid":
            small = np.exp(-np.abs(wide))
            return np.where(wide < 0, small, 1) / (1 + small)
        case "erf" if x.dtype == np.float32:
            return np.longdouble(torch.erf(torch.from_numpy(x.astype(np.float64))).numpy())
        case "erf":
            return np.array([_erf(float(t)) for t in x])
        case "round":
            return np.rint(wide)
        case _:
            return getattr(np, name)(wide)


def _erf(x: float) -> np.longdouble:
    import mpmath

    if not 0 < abs(x) < 7:
        return np.longdouble(math.erf(x))
    with mpmath.workprec(80):
        return np.longdouble(mpmath.nstr(mpmath.erf(x), 25))


def ulps(found: Array, wanted: Array) -> Array:
    """Distance in units of the last place of the exact result; infinite where only one is NaN or infinite."""
    info = np.finfo(found.dtype)
    exponent = np.maximum(np.frexp(np.abs(wanted))[1] - 1, info.minexp)
    unit = np.ldexp(np.longdouble(1), exponent + info.machep)
    rounded = wanted.astype(found.dtype)
    same = (found == rounded) | (np.isnan(found) & np.isnan(wanted))
    distance = np.abs(np.longdouble(found) - wanted) / unit
    distance = np.where(np.isfinite(distance), distance, math.inf)
    return np.where(
        same & ~np.isfinite(rounded), 0, np.where(same, np.minimum(distance, 0.5), distance)
    )
