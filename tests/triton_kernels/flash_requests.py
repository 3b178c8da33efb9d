"""Turns shapes and configurations into requests to compile the kernels of ``flash.py``."""

from __future__ import annotations

from pathlib import Path

from attncompiler.backends.triton_configs import Config, padded_dim
from attncompiler.runtime.offline import KernelRequest

SOURCE = Path(__file__).with_name("flash.py")
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
POINTERS = {
    "forward": ("q", "k", "v", "out"),
    "rows_backward": ("q", "k", "v", "do", "dq"),
    "columns_backward": ("q", "k", "v", "do", "dk", "dv"),
}
NUMBERS = ("queries", "keys", "q_row", "k_row", "v_row", "o_row", "q_head", "k_head", "v_head", "o_head")  # fmt: skip


def request(
    kernel: str, config: Config, dtype: str, head_dim: int, value_dim: int
) -> KernelRequest:
    """One kernel, causal, strides and lengths aligned as they usually are."""
    own = POINTERS[kernel]
    statistics = ("lse",) if kernel == "forward" else ("lse", "delta")
    return KernelRequest(
        source=SOURCE,
        kernel=kernel,
        signature={
            **dict.fromkeys(own, f"*{SHORT[dtype]}"),
            **dict.fromkeys(statistics, "*fp32"),
            "scale": "fp32",
            **dict.fromkeys(NUMBERS, "i32"),
        },
        constexprs={
            "dim": head_dim,
            "value_dim": value_dim,
            "block_m": config.block_m,
            "block_n": config.block_n,
            "padded": padded_dim(head_dim),
            "value_padded": padded_dim(value_dim),
            "causal": True,
            "descriptors": config.descriptors,
            "precision": "ieee",
        },
        aligned=frozenset((*own, *statistics, *NUMBERS)) - {"queries", "keys"},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
