"""Turns the TileLang files of a compilation into requests for the offline compiler: the constants a call would give."""

from __future__ import annotations

import ast
from pathlib import Path

from attncompiler.backends.gpu_targets import Target
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.backends.tilelang_configs import width_of
from attncompiler.runtime.offline_records import Constant, KernelRequest
from attncompiler.runtime.tilelang_launch import HOPPER_REGISTERS
from attncompiler.runtime.triton_requests import Call


def tilelang_request(
    source: Path, kernel: Kind, call: Call, config: Config, target: Target
) -> KernelRequest:
    """One kernel of a file for one call, configuration and target."""
    names, order = _read(source, kernel)
    hopper = target.name == "sm_90"
    registers = HOPPER_REGISTERS.get(config.num_warps // 4, 0) if config.descriptors else 0
    # Without TMA no warp group loads for the others.
    stages = config.num_stages if config.descriptors or not hopper else 1
    known: dict[str, Constant] = {
        "dtype": call.dtype, "HEAD_DIM": call.head_dim, "VALUE_DIM": call.value_dim,
        "HEAD_WIDTH": width_of(call.head_dim), "VALUE_WIDTH": width_of(call.value_dim),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "STAGES": stages,
        "THREADS": config.num_warps * target.warp_size, "LISTED": call.listed, "POSITIVE": True,
        "WIDEN": call.dtype == "float16",
        "LONG": False, "SERIAL": False, "PHASE": 2, "FUSED": call.fused, "ALONE": True,
        "REGISTERS": registers if hopper else 0,
        "GIVEN": tuple(name for name in order if _given(name, kernel, call)),
    }  # fmt: skip
    constants = {name: known[name] for name in names}
    return KernelRequest(
        source, kernel, {}, constants, num_warps=config.num_warps, num_stages=config.num_stages,
        language="tilelang",
    )  # fmt: skip


def _given(name: str, kernel: Kind, call: Call) -> bool:
    """Whether a call has an argument; the others are not touched."""
    if name in ("tile_lists", "block_order"):
        return call.listed
    if kernel == "forward" and (name in ("kept", "values") or name.startswith("save_")):
        return call.trains
    return kernel != "columns" or name != "dq" or call.fused


def _read(source: Path, kernel: Kind) -> tuple[list[str], list[str]]:
    """The constants that a file's function takes and the arguments of the kernel that it makes, in order."""
    names: list[str] = []
    order: list[str] = []
    for node in ast.parse(source.read_text()).body:
        match node:
            case ast.FunctionDef(name=name) if name == kernel:
                names = [a.arg for a in node.args.args]
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=ast.Attribute(value=ast.Constant(value=str(words)))),
            ) if name == f"{kernel.upper()}_ARGUMENTS":
                order = words.split()
    if not names or not order:
        raise KeyError(kernel)
    return names, order
