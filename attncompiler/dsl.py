"""Everything a variant file imports: Variant, Tensor, the functions and the prelude. Importing it does not import torch."""

from __future__ import annotations

from attncompiler.declarations import Tensor
from attncompiler.functions import (
    Value,
    bit_length,
    cdiv,
    ceil,
    clamp,
    cos,
    erf,
    exp,
    exp2,
    expm1,
    floor,
    inf,
    is_pow2,
    log,
    log1p,
    log2,
    maximum,
    minimum,
    relu,
    rsqrt,
    sigmoid,
    sign,
    silu,
    sin,
    softplus,
    sqrt,
    square,
    tanh,
    to_bool,
    to_float,
    to_int,
    where,
)
from attncompiler.prelude.masks import causal
from attncompiler.prelude.normalizers import softmax
from attncompiler.prelude.scores import soft_cap
from attncompiler.variant import Variant

__all__ = [
    "Tensor", "Value", "Variant", "bit_length", "causal", "cdiv", "ceil", "clamp", "cos", "erf", "exp", "exp2",
    "expm1", "floor", "inf", "is_pow2", "log", "log1p", "log2", "maximum", "minimum", "relu", "rsqrt", "sigmoid",
    "sign", "silu", "sin", "soft_cap", "softmax", "softplus", "sqrt", "square", "tanh", "to_bool", "to_float",
    "to_int", "where",
]  # fmt: skip
