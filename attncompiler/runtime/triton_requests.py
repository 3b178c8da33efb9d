"""Turns the Triton files of a compilation into requests for the offline compiler: the types that a call would give."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attncompiler.backends.gpu_targets import EIGHT_BITS
from attncompiler.backends.tile_config import summed_width
from attncompiler.backends.triton_configs import Config, head_width, padded_dim
from attncompiler.runtime.offline_records import Constant, KernelRequest

Kernel = Literal["forward", "rows", "columns", "plan"]
TRITON_TYPES = {
    "float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64",
    "float8_e4m3fn": "fp8e4nv", "float8_e5m2": "fp8e5",
    "float8_e4m3fnuz": "fp8e4b8", "float8_e5m2fnuz": "fp8e5b16",
    "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8", "uint8": "u8", "bool": "i1",
}  # fmt: skip
_INPUTS = frozenset(
    f"{name}_pointer" for name in ("q", "k", "v", "out", "grad", "dq", "go", "dk", "dv")
)


@dataclass(frozen=True, slots=True)
class Call:
    """What a kernel is compiled for: the type of q, k and v, head dimensions, types of captured tensors by argument.

    ``params`` gives the kind of every number, ``listed`` whether tiles come from lists, ``widen`` is that of
    ``triton_launch.widened``, ``as_float16`` that of ``run_forward``, ``trains`` says whether a forward keeps what a
    backward reads, ``fused`` whether the second kernel of a backward adds up dq, ``alone`` whether each head of queries
    has keys of its own. Of TileLang's kernels ``given`` are the arguments that are not in every call, ``phase`` is that
    of a backward.
    """

    dtype: str
    head_dim: int
    value_dim: int
    tensors: Mapping[str, str]
    params: Mapping[str, str]
    listed: bool
    trains: bool = False
    widen: str = ""
    fused: bool = False
    as_float16: bool = False
    given: frozenset[str] = frozenset()
    phase: int = 2
    alone: bool = True


def request(source: Path, kernel: Kernel, call: Call, config: Config) -> KernelRequest:
    """One kernel of a file for one call and configuration."""
    arguments, fixed = _arguments(source, kernel)
    element = TRITON_TYPES[call.dtype]
    signature: dict[str, str] = {}
    constants: dict[str, Constant] = {}
    aligned = set[str]()
    widths = [head_width(call.head_dim, call.dtype), padded_dim(call.value_dim)]
    if kernel == "columns":
        widths = [summed_width(w, kernel, config.block_n, config.chunk) for w in widths]
    chosen: dict[str, Constant] = {
        "HEAD_DIM": call.head_dim, "VALUE_DIM": call.value_dim, "HEAD_WIDTH": widths[0], "VALUE_WIDTH": widths[1],
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "CHUNK": config.chunk, "LISTED": call.listed,
        "DESCRIPTORS": config.descriptors, "POSITIVE": True,
        "PRECISION": "ieee", "WIDEN": call.widen, "AS_FLOAT16": call.as_float16,
        "LONG": False, "REVERSED": True, "PHASE": 2, "FUSED": call.fused, "PERSISTENT": False, "ALONE": call.alone,
        "TRANSPOSED": False, "EXACT": True,
    }  # fmt: skip
    # Rows of heads whose bytes 16 divides begin where vectors can be loaded.
    whole = call.head_dim % 16 == 0 and call.value_dim % 16 == 0
    for name in arguments:
        kind = _type(name, call, element)
        if name == "value_pointer" and kernel == "rows":
            kind = "*fp32"
        if name == "dq_pointer" and kernel == "columns":
            kind = "*fp32" if call.fused else None
        if name in fixed:
            constants[name] = chosen[name]
        elif kind is None:
            constants[name] = None
        else:
            signature[name] = kind
            if kind.startswith("*") or (name.startswith("stride_") and whole):
                aligned.add(name)
    return KernelRequest(
        source,
        kernel,
        signature,
        constants,
        frozenset(aligned),
        config.num_warps,
        config.num_stages,
    )


def _type(name: str, call: Call, element: str) -> str | None:
    """Triton's type of an argument, None for one that a call leaves out."""
    if name == "out_pointer" and call.dtype in EIGHT_BITS:
        return "*bf16"
    if name in _INPUTS:
        return f"*{element}"
    if name in call.tensors:
        return f"*{TRITON_TYPES[call.tensors[name]]}"
    if name in call.params:
        return "fp32" if call.params[name] == "float" else "i32"
    if name in ("kept_pointer", "value_pointer") or name.startswith("save_"):
        return "*fp32" if call.trains else None
    if name.startswith(("saved_", "handed_", "from_")) or name.endswith("_stored"):
        return "*fp32"
    if name.startswith("grad_"):
        return None
    if name in ("tile_lists", "block_order"):
        return "*i32" if call.listed else None
    suffixes = {"_fixed": "*i64", "_largest": "*i32", "_factors": "*fp32"}
    for suffix, kind in suffixes.items():
        if name.endswith(suffix):
            return kind
    return "fp32" if name == "scale" else "i32"


def _arguments(source: Path, kernel: str) -> tuple[list[str], frozenset[str]]:
    """The names of a kernel's arguments, and which of them are compile-time constants."""
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == kernel:
            names = [a.arg for a in node.args.args]
            return names, frozenset(_constants(node.args.args))
    raise KeyError(kernel)


def _constants(arguments: Iterable[ast.arg]) -> Iterable[str]:
    return (a.arg for a in arguments if a.annotation and "constexpr" in ast.unparse(a.annotation))
