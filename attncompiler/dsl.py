"""What a variant file imports: Variant, Tensor, functions and prelude; turns one import into the whole language.

Importing this module does not import torch.
"""

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
from attncompiler.layouts import Boxes
from attncompiler.prelude.masks import (
    block_causal,
    causal,
    chunked,
    coords,
    dilated,
    document,
    global_window,
    halo,
    neighborhood,
    next_scale,
    power_of_two,
    prefix_lm,
    radial,
    shifted_chunks,
    sink_window,
    sliding_window,
    tree,
)
from attncompiler.prelude.normalizers import (
    affine_scaled,
    cog,
    relu_squared_weights,
    relu_weights,
    sigmoid_weights,
    signed_normalized,
    sink_softmax,
    softmax,
    softmax_off_by_one,
    sum_normalized,
    top_theta,
)
from attncompiler.prelude.scores import alibi, alibi_slopes, relative_table, soft_cap
from attncompiler.variant import Variant

__all__ = [
    "Boxes", "Tensor", "Value", "Variant", "affine_scaled", "alibi", "alibi_slopes", "bit_length",
    "block_causal", "causal", "cdiv", "ceil", "chunked", "clamp", "cog", "coords", "cos", "dilated",
    "document", "erf", "exp", "exp2", "expm1", "floor", "global_window", "halo", "inf", "is_pow2",
    "log", "log1p", "log2", "maximum", "minimum", "neighborhood", "next_scale", "power_of_two",
    "prefix_lm", "radial", "relative_table", "relu", "relu_squared_weights", "relu_weights",
    "rsqrt", "shifted_chunks", "sigmoid", "sigmoid_weights", "sign", "signed_normalized", "silu",
    "sin", "sink_softmax", "sink_window", "sliding_window", "soft_cap", "softmax",
    "softmax_off_by_one", "softplus", "sqrt", "square", "sum_normalized", "tanh", "to_bool",
    "to_float", "to_int", "top_theta", "tree", "where",
]  # fmt: skip
