"""The operators of a formula that TileLang lacks or means otherwise; a kernel prints in those it calls.

Each is a Python function from expressions to an expression. Floats are float32. What they are made of: CUDA's and HIP's
device libraries, which are good to 2 units in the last place (exp2, log2, tanh, sin ...), exact quotients and square
roots. Flushing denormals to zero is asked for when a kernel is compiled, as it makes an exponential one instruction.
"""

import tilelang.language as T


def choose(condition, yes, no):
    """One of two values, both of which are computed; integers of two widths become the wider."""
    if yes.dtype != no.dtype:
        yes, no = T.Cast("int64", yes), T.Cast("int64", no)
    return T.Select(condition, yes, no)


def negation(condition):
    """Whether a condition is false; of floats, what is not less need not be greater or equal."""
    if getattr(getattr(condition, "a", None), "dtype", None) == "float32":
        return T.Select(condition, T.bool(False), T.bool(True))
    return T.Not(condition)


def equal(x, y):
    """Whether two floats are equal; the simplifier would call a NaN equal to itself."""
    return (x <= y) & (y <= x)


def not_equal(x, y):
    """Whether two floats differ, or one is NaN."""
    return T.Select(equal(x, y), T.bool(False), T.bool(True))


def zero():
    """The float 0, of which the simplifier does not know that 0 * x is 0: it is not if x is infinite or NaN."""
    return library("fabsf", T.float32(0.0))


def library(name, *arguments):
    """A function of the device's C library."""
    return T.call_pure_extern("float32", name, *arguments)


def floor_divide_int(x, y):
    """The floor of x / y, as in Python; a zero divisor gives 0."""
    divisor = choose(
        (y == 0) | (y == -1), T.Cast(y.dtype, 1), y
    )  # the smallest number over -1 has no quotient
    quotient = T.truncdiv(x, divisor)
    too_high = (quotient * divisor != x) & ((x < 0) != (divisor < 0))
    quotient = choose(too_high, quotient - 1, quotient)
    return choose(y == 0, T.Cast(quotient.dtype, 0), choose(y == -1, -x, quotient))


def modulo_int(x, y):
    """What floor_divide_int leaves: it has the sign of y, as in Python; a zero divisor gives 0."""
    rest = x - floor_divide_int(x, y) * y
    return choose(y == 0, T.Cast(rest.dtype, 0), rest)


def sign_int(x):
    """1, 0 or -1."""
    return choose(x > 0, T.Cast(x.dtype, 1), choose(x < 0, T.Cast(x.dtype, -1), x))


def bit_length(x):
    """The number of bits of abs(x) without leading zeros; 0 for 0."""
    size = T.Cast("int64", absolute_int(x))
    zeros = T.call_pure_extern("int32", "__clzll", size | T.int64(1))
    return choose(size == 0, T.int32(0), T.int32(64) - zeros)


def absolute_int(x):
    """The size of a whole number."""
    return T.max(x, -x)


def divide(x, y):
    """x / y, correctly rounded."""
    return (zero() if getattr(x, "value", None) == 0 else x) / y


def modulo(x, y):
    """What the floor of x / y leaves, as in Python: it has the sign of y. NaN for a zero divisor."""
    rest = library("fmodf", x, y)
    zero = T.float32(0.0)
    return choose((rest != zero) & ((rest < zero) != (y < zero)), rest + y, rest)


def floor_divide(x, y):
    """The floor of the exact quotient, as in Python: 1 // 0.1 is 9 although 1 / 0.1 rounds to 10."""
    rest = library("fmodf", x, y)
    zero = T.float32(0.0)
    quotient = (x - rest) / y
    lower = (rest != zero) & ((rest < zero) != (y < zero))
    below = choose(lower, quotient - T.float32(1.0), quotient)
    whole = library("copysignf", library("rintf", below), x / y)
    return choose(y == zero, x / y, whole)


def power(x, y):
    """x to the power of y."""
    return library("powf", x, y)


def sign(x):
    """1, -1, or x where it is neither positive nor negative."""
    return choose(
        x > T.float32(0.0), T.float32(1.0), choose(x < T.float32(0.0), T.float32(-1.0), x)
    )


def minimum(x, y):
    """The smaller one; NaN where either is."""
    return choose((x < y) | not_equal(x, x), x, y)


def maximum(x, y):
    """The larger one; NaN where either is."""
    return choose((x > y) | not_equal(x, x), x, y)


def reciprocal_square_root(x):
    """1 / sqrt(x), rounded twice."""
    return T.float32(1.0) / library("sqrtf", x)


def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return T.float32(1.0) / (T.float32(1.0) + library("expf", -x))


def absolute(x):
    """The size of x."""
    return library("fabsf", x)


def exponential(x):
    """exp(x)."""
    return library("expf", x)


def exponential2(x):
    """2 to the power of x; one instruction of a GPU."""
    return library("exp2f", x)


def exponential_minus_one(x):
    """exp(x) - 1."""
    return library("expm1f", x)


def logarithm(x):
    """log(x)."""
    return library("logf", x)


def logarithm2(x):
    """log(x) / log(2)."""
    return library("log2f", x)


def logarithm_one_plus(x):
    """log(1 + x)."""
    return library("log1pf", x)


def square_root(x):
    """The square root, correctly rounded."""
    return library("sqrtf", x)


def hyperbolic_tangent(x):
    """tanh(x)."""
    return library("tanhf", x)


def error_function(x):
    """erf(x)."""
    return library("erff", x)


def sine(x):
    """sin(x)."""
    return library("sinf", x)


def cosine(x):
    """cos(x)."""
    return library("cosf", x)


def floor(x):
    """The largest whole number that is not above x."""
    return library("floorf", x)


def ceiling(x):
    """The smallest whole number that is not below x."""
    return library("ceilf", x)


def truncate(x):
    """x without its fraction."""
    return library("truncf", x)


def round_half_even(x):
    """The nearest whole number, the even one of two."""
    return library("rintf", x)


def saturate(x):
    """A 64-bit integer as the nearest one of 32 bits."""
    largest = T.int64(2147483647)
    return T.Cast("int32", T.min(T.max(x, -largest - 1), largest))
