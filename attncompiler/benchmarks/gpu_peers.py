"""Turns a case into what only a GPU has beside it: FlashAttention's own package, and our kernels in TileLang."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attncompiler.benchmarks.suite import Case, SoftCap, Window
from attncompiler.comparison import Maker, caller
from attncompiler.compiler import compile as compile_variant
from attncompiler.peers import Attention, Refusal
from attncompiler.runtime.operator import Operator
from attncompiler.runtime.triton_engine import TritonEngine
from attncompiler.runtime.triton_launch import Tiling
from attncompiler.torch_formulas import Inputs


def gpu_makers(case: Case, device: str, *, training: bool) -> dict[str, Maker]:
    """The makers of a case's further rows on a GPU; none elsewhere."""
    if device != "cuda":
        return {}
    makers: dict[str, Maker] = {"flash_attn": lambda inputs: flash_attention(case, inputs)}
    for name, operator in _tilelang(case, device, training=training).items():
        makers[name] = _maker(operator)
    return makers


def flash_attention(case: Case, inputs: Inputs) -> Attention | Refusal:
    """The package flash_attn on a case that it can express."""
    if importlib.util.find_spec("flash_attn") is None:
        return Refusal("the package flash_attn is not installed")
    if inputs.q.dtype not in (torch.float16, torch.bfloat16):
        return Refusal("it takes float16 and bfloat16 only")
    options = _flash_options(case, inputs)
    if options is None:
        return Refusal("it has no option for it")
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    # It wants [B, S, H, D], packed documents [B * S, H, D]: views, no copies.
    def call() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
        out: Tensor = flash_attn_func(q, k, v, **options)
        return out.transpose(1, 2)

    def packed() -> Tensor:
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (inputs.q, inputs.k, inputs.v))
        out: Tensor = flash_attn_varlen_func(q, k, v, **options)
        batch, heads, length, features = inputs.q.shape
        return out.view(batch, length, heads, features).transpose(1, 2)

    return packed if "cu_seqlens_q" in options else call


def _flash_options(case: Case, inputs: Inputs) -> dict[str, Any] | None:
    """Keyword arguments of flash_attn that say what a case is."""
    variant = case.variant
    match case.name:
        case "dense":
            return {"causal": False}
        case "causal":
            return {"causal": True}
        case "window":
            assert isinstance(variant, Window)
            return {"causal": True, "window_size": (variant.window - 1, 0)}
        case "soft cap":
            assert isinstance(variant, SoftCap)
            return {"causal": True, "softcap": variant.cap}
        case "alibi":
            return {"causal": True, "alibi_slopes": inputs.tensors["slopes"].float()}
        case "document":
            return _packed_options(inputs)
        case _:
            return None


def _packed_options(inputs: Inputs) -> dict[str, Any]:
    """The borders of the documents of all batches, one after the other."""
    counts = torch.bincount(inputs.tensors["ids"]).repeat(inputs.q.shape[0])
    borders = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(counts.max())
    return {
        "causal": True,
        "cu_seqlens_q": borders,
        "cu_seqlens_k": borders,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
    }


def _tilelang(case: Case, device: str, *, training: bool) -> dict[str, Operator]:
    """Our TileLang operators: on Hopper forwards in both schedules."""
    if importlib.util.find_spec("tilelang") is None:
        return {}
    plain, apart = (compile_variant(case.variant, backend="tilelang") for _ in range(2))
    assert isinstance(plain, Operator)
    assert isinstance(apart, Operator)
    hopper = torch.version.cuda and torch.cuda.get_device_capability()[0] == 9
    if training or not hopper:
        return {"tilelang": plain}
    engine = apart._engines[device]
    assert isinstance(engine, TritonEngine)
    engine.tiling = Tiling(128, 128, 8, 2, descriptors=True, apart=True)
    return {"tilelang": plain, "tilelang apart": apart}


def _maker(operator: Callable[..., Tensor]) -> Maker:
    return lambda inputs: caller(operator, inputs)
