"""The operators of a formula that Triton lacks or means otherwise; a kernel prints in those it calls.

Each takes scalars, blocks or literals. Floats are float32. There is no call of a device library by name, so all of it
runs in Triton's interpreter too. What the compiler makes of the builtins they are written with, and why some are not
used as they are:

* ``tl.exp2`` is ``ex2.approx.ftz`` on NVIDIA and ``v_exp_f32`` on AMD: 2 units in the last place, denormals are 0.
* ``tl.exp`` rounds ``x log2(e)`` before that instruction, which costs up to 40 units in the last place at 80.
* ``tl.log``, ``tl.log2``, ``tl.erf``, ``tl.sin`` and ``tl.cos`` are inlined from the vendor's library, good to 1 or 2
  units for every argument (the angles are reduced exactly), but NVIDIA's take a denormal for 0.
* ``tl.sqrt`` and ``tl.rsqrt`` are approximations on NVIDIA, ``tl.sqrt_rn`` is exact.
* ``x / y`` and ``tl.fdiv`` are ``div.full`` on NVIDIA, 2 units; ``tl.math.div_rn`` is exact and several times slower.
* ``x // y`` and ``x % y`` round to zero, and on floats go wrong by a whole divisor near whole quotients.
* ``tl.floor`` and ``tl.ceil`` take a denormal for 0 on NVIDIA.
* ``tl.maximum``, ``tl.minimum``, ``tl.max`` and ``tl.min`` pass over a NaN unless told otherwise.

A compiler may fuse a product with a sum that follows. Where an error term must match a product, ``product`` is used.
"""

import triton
import triton.language as tl


@triton.jit
def floor_divide_int(x, y):
    """The floor of x / y, as in Python; a zero divisor gives 0."""
    divisor = tl.where((y == 0) | (y == -1), 1, y)  # the smallest number over -1 has no quotient
    quotient = x // divisor
    too_high = (quotient * divisor != x) & ((x < 0) != (divisor < 0))
    quotient = tl.where(too_high, quotient - 1, quotient)
    return tl.where(y == 0, 0, tl.where(y == -1, -x, quotient))


@triton.jit
def modulo_int(x, y):
    """What floor_divide_int leaves: it has the sign of y, as in Python; a zero divisor gives 0."""
    return tl.where(y == 0, 0, x - floor_divide_int(x, y) * y)


@triton.jit
def sign_int(x):
    """1, 0 or -1."""
    return tl.where(x > 0, 1, tl.where(x < 0, -1, x))


@triton.jit
def bit_length(x):
    """The number of bits of abs(x) without leading zeros; 0 for 0."""
    rest = tl.abs(tl.cast(x, tl.int64))
    length = tl.cast(0, tl.int32)
    for step in tl.static_range(6):
        upper = rest >> (32 >> step)
        length += tl.where(upper > 0, 32 >> step, 0)
        rest = tl.where(upper > 0, upper, rest)
    return tl.where(x == 0, x, length + tl.cast(rest, tl.int32))


@triton.jit
def bits(x):
    """The bit pattern of a float."""
    return tl.cast(x, tl.int32, bitcast=True)


@triton.jit
def from_bits(n):
    """The float with a bit pattern."""
    return tl.cast(n, tl.float32, bitcast=True)


@triton.jit
def copy_sign(x, s):
    """The magnitude of x with the sign of s, that of a zero included."""
    return from_bits((bits(x) & 0x7FFFFFFF) | (bits(s) & -0x80000000))


@triton.jit
def product(x, y):
    """The rounded x * y, which no compiler fuses with the sum that follows."""
    return tl.fma(x, y, 0.0)


@triton.jit
def divide(x, y):
    """x / y, within 2 units in the last place on NVIDIA."""
    return tl.fdiv(x, y)


@triton.jit
def remainder(x, y):
    """What x / y rounded to zero leaves, exactly; a long division, twelve digits of 24 bits."""
    rest = tl.where(y != y, y, tl.abs(x))
    for step in range(12):
        scale = from_bits((215 - 8 * step) << 23)
        unit = tl.abs(y) * scale * scale * scale
        digit = tl.floor(tl.math.div_rn(rest, unit))
        after = tl.fma(-digit, unit, rest)
        after = tl.where(
            after < 0, after + unit, after
        )  # the quotient was rounded up to the next digit
        rest = tl.where(rest >= unit, after, rest)
    return copy_sign(rest, x)


@triton.jit
def modulo(x, y):
    """What the floor of x / y leaves, as in Python: it has the sign of y. NaN for a zero divisor."""
    rest = remainder(x, y)
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)


@triton.jit
def floor_divide(x, y):
    """The floor of the exact quotient, as in Python: 1 // 0.1 is 9 although 1 / 0.1 rounds to 10."""
    rest = remainder(x, y)
    quotient = tl.math.div_rn(x - rest, tl.cast(y, tl.float32))
    below = tl.where((rest != 0) & ((rest < 0) != (y < 0)), quotient - 1.0, quotient)
    return tl.where(y == 0, tl.fdiv(x, y), copy_sign(round_half_even(below), tl.fdiv(x, y)))


@triton.jit
def truncate(x):
    """Rounds to zero."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def round_half_even(x):
    """The nearest whole number, the even one of two."""
    whole = copy_sign((tl.abs(x) + 8388608.0) - 8388608.0, x)  # floats from 2^23 on are whole
    return tl.where(tl.abs(x) < 8388608.0, whole, x)


@triton.jit
def maximum(x, y):
    """The larger number; NaN where either is NaN."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """The smaller number; NaN where either is NaN."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def fold_max(total, x):
    """The larger number; the other one where one is NaN, as ``tl.max`` has it within a block."""
    return tl.maximum(total, x)


@triton.jit
def fold_min(total, x):
    """The smaller number; the other one where one is NaN, as ``tl.min`` has it within a block."""
    return tl.minimum(total, x)


@triton.jit
def sign(x):
    """1, 0 or -1; 0 for NaN, as torch has it."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def square_root(x):
    """The square root, rounded correctly."""
    return tl.sqrt_rn(tl.cast(x, tl.float32))


@triton.jit
def reciprocal_square_root(x):
    """1 / sqrt(x); numbers too small for the instruction are scaled by 2^64."""
    tiny = x < 1e-37
    root = tl.rsqrt(tl.where(tiny, x * 18446744073709551616.0, x))
    return tl.where(tiny, root * 4294967296.0, root)


@triton.jit
def exponential2_of_sum(high, low):
    """2^(high + low), where 2^low is 1 + low ln 2; results too small for the instruction are scaled."""
    tiny = high < -125.0
    power = tl.exp2(tl.where(tiny, high + 64.0, high)) * tl.fma(low, 0.693147181, 1.0)
    return tl.where(tiny, power * 5.421010862427522e-20, power)


@triton.jit
def exponential2(x):
    """2^x."""
    return exponential2_of_sum(x, 0.0)


@triton.jit
def exponential(x):
    """e^x: 2^(x log2(e)) with the product in two floats."""
    x = tl.where(x > 89.0, 89.0, tl.where(x < -104.0, -104.0, x))
    high = product(x, 1.44269502)
    negative = high * -1.0  # free, where -high is a subtraction
    low = tl.fma(x, 1.92596299e-8, tl.fma(x, 1.44269502, negative))
    return exponential2_of_sum(high, low)


@triton.jit
def exponential_minus_one(x):
    """e^x - 1, as 2^n (e^r - 1) + (2^n - 1) with a polynomial in r = x - n ln 2."""
    bounded = tl.where(x > 89.0, 89.0, tl.where(x < -20.0, -20.0, x))
    shifted = tl.fma(bounded, 1.44269502, 12582912.0)  # its last bits are n
    n = bits(shifted) - 0x4B400000
    r = tl.fma(shifted - 12582912.0, -0.693359375, bounded)
    r = tl.fma(shifted - 12582912.0, 2.12194440e-4, r)
    p = tl.fma(r, 1.9875691500e-4, 1.3981999507e-3)
    p = tl.fma(p, r, 8.3334519073e-3)
    p = tl.fma(p, r, 4.1665795894e-2)
    p = tl.fma(p, r, 1.6666665459e-1)
    p = tl.fma(p, r, 5.0000001201e-1)
    p = tl.fma(p, r * r, r)
    half = from_bits((n + 126) << 23)  # 2^n itself overflows before the result does
    result = tl.fma(p, half, half - 0.5) * 2.0
    return tl.where(x == 0, x, tl.where(n == 0, p, result))


@triton.jit
def logarithm(x):
    """The natural logarithm; numbers too small for the library are scaled by 2^32."""
    tiny = x < 1e-37
    result = tl.log(tl.where(tiny, x * 4294967296.0, x))
    return tl.where(tiny, result - 22.1807098, result)


@triton.jit
def logarithm2(x):
    """The logarithm to base 2; numbers too small for the library are scaled by 2^32."""
    tiny = x < 1e-37
    result = tl.log2(tl.where(tiny, x * 4294967296.0, x))
    return tl.where(tiny, result - 32.0, result)


@triton.jit
def logarithm_one_plus(x):
    """log(1 + x): the logarithm of the rounded sum, and the derivative times what rounding left."""
    total = 1.0 + tl.cast(x, tl.float32)
    left = tl.fdiv(x - (total - 1.0), total)
    result = tl.log(total)
    result = tl.where((total == 0) | (total == float("inf")), result, result + left)
    return tl.where(total == 1.0, x, result)


@triton.jit
def hyperbolic_tangent(x):
    """tanh: a polynomial near 0, then 1 - 2 / (e^2x + 1)."""
    z = x * tl.cast(x, tl.float32)
    p = tl.fma(z, -5.90585791e-3, 2.08053751e-2)
    p = tl.fma(p, z, -5.37866806e-2)
    p = tl.fma(p, z, 1.33319582e-1)
    p = tl.fma(p, z, -3.33332993e-1)
    near = tl.fma(p * z, x, x)
    far = 1.0 - tl.fdiv(2.0, tl.exp2(tl.abs(x) * 2.88539008) + 1.0)
    return copy_sign(tl.where(tl.abs(x) < 0.59, near, far), x)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), by way of e^-abs(x), which never overflows."""
    e = exponential(-tl.abs(x))
    return tl.fdiv(tl.where(x < 0, e, 1.0), 1.0 + e)


@triton.jit
def error_function(x):
    """The error function; its slope at 0 times a number too small for the library."""
    return tl.where(tl.abs(x) < 1e-30, x * 1.12837917, tl.erf(tl.cast(x, tl.float32)))


@triton.jit
def sine(x):
    """The sine of any angle; a number too small for the library is its own sine."""
    return tl.where(tl.abs(x) < 1e-30, x, tl.sin(tl.cast(x, tl.float32)))


@triton.jit
def cosine(x):
    """The cosine of any angle."""
    return tl.cos(tl.cast(x, tl.float32))


@triton.jit
def logarithm2_in_two(x):
    """log2 of a positive finite number as a sum of two floats, the second of which is the first's error."""
    tiny = x < 1e-37
    rest = bits(tl.where(tiny, x * 16777216.0, x)) - 0x3F3504F3
    exponent = tl.cast((rest >> 23) - tl.where(tiny, 24, 0), tl.float32)
    f = (
        from_bits((rest & 0x7FFFFF) + 0x3F3504F3) - 1.0
    )  # x = (1 + f) 2^exponent, with 1 + f next to 1
    q = tl.fdiv(f, f + 2.0)
    q_low = tl.fdiv(tl.fma(q, -f, tl.fma(q, -2.0, f)), f + 2.0)
    z = q * q
    p = tl.fma(z, 0.34022744, 0.411705893)  # log2(1 + f) = 2 log2(e) artanh(q)
    p = tl.fma(p, z, 0.577082859)
    p = tl.fma(p, z, 0.961796679)
    high = product(q, 2.88539004)
    low = tl.fma(q, 2.88539004, -high) + tl.fma(q, 3.85192598e-8, q_low * 2.88539004)
    low = tl.fma(p * z, q, low)
    total = exponent + high
    low = (high - (total - exponent)) + low
    result = total + low
    return result, low - (result - total)


@triton.jit
def power(x, y):
    """x^y with the values of C's pow at zeros, infinities, NaNs and negative numbers."""
    magnitude = tl.abs(tl.cast(x, tl.float32))
    infinity = float("inf")
    high, low = logarithm2_in_two(magnitude)
    high = tl.where(magnitude == 0, -infinity, tl.where(magnitude == infinity, infinity, high))
    exponent = product(y, high)
    tail = tl.fma(y, high, -exponent) + y * low
    tail = tl.where(tl.abs(exponent) > 200.0, 0.0, tail)
    exponent = tl.where(exponent > 200.0, 200.0, tl.where(exponent < -200.0, -200.0, exponent))
    result = tl.where(magnitude == 1.0, 1.0, exponential2_of_sum(exponent, tail))
    y = tl.cast(y, tl.float32)
    odd = (tl.floor(y) == y) & (tl.floor(y * 0.5) * 2.0 != y)
    result = tl.where(odd & (bits(x) < 0), -result, result)
    undefined = (x != x) | (y != y) | ((x < 0) & (magnitude != infinity) & (tl.floor(y) != y))
    result = tl.where(undefined, float("nan"), result)
    return tl.where((x == 1.0) | (y == 0), 1.0, result)
