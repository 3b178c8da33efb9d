"""Turns a TileLang kernel that was lowered into what a launch without TileLang needs, as data for JSON.

TileLang's host module makes the tensor maps of a call and launches the kernel. Its two kinds of calls are read here:
expressions over extents, strides and numbers become lists such as ``["+", ["size", "q", 2], 127]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attncompiler.errors import InternalError

_MAKE_MAP = "__tvm_tensormap_create_tiled"
_OPERATORS = {
    "Add": "+", "Sub": "-", "Mul": "*", "FloorDiv": "//", "FloorMod": "%", "Min": "min", "Max": "max",
}  # fmt: skip
_NUMBERS = ("int32", "int64", "float32")
_GRID = ("blockIdx.x", "blockIdx.y", "blockIdx.z")
_BLOCK = ("threadIdx.x", "threadIdx.y", "threadIdx.z")
_SHARED = "tirx.use_dyn_shared_memory"


def describe_launch(made: Any, lowered: Any, order: Sequence[str]) -> dict[str, Any]:
    """The launch of a kernel: entry, grid, block, shared memory, tensor maps, parameters in order.

    ``made`` is what was lowered, ``order`` names its arguments. Raises InternalError for what no launcher here knows.
    """
    ((place, device),) = lowered.device_mod.functions.items()
    entry = str(place.name_hint)
    for name in ("cluster_dims", "use_cooperative_groups", "has_cuda_pdl_sync"):
        if device.attrs.get(name):
            raise InternalError("tilelang launch", f"{entry} is launched with {name}")
    (host,) = lowered.host_mod.functions.values()
    meanings = arguments_of(made, order)
    launch: list[Any] | None = None
    maps: dict[str, dict[str, Any]] = {}
    for name, arguments in _packed_calls(host.body):
        if name == _MAKE_MAP:
            maps[str(arguments[0].name)] = _map(arguments[1:], meanings)
        elif name == entry:
            if launch is not None:
                raise InternalError("tilelang launch", f"{entry} is launched twice")
            launch = arguments
        elif name != "__tvm_set_device":
            raise InternalError("tilelang launch", f"the host calls {name}")
    if launch is None:
        raise InternalError("tilelang launch", f"the host does not launch {entry}")
    given, rest = launch[: len(device.params)], launch[len(device.params) :]
    tags = [str(tag) for tag in device.attrs["tirx.kernel_launch_params"]]
    if len(tags) != len(rest) or set(tags) - {*_GRID, *_BLOCK, _SHARED}:
        raise InternalError("tilelang launch", f"{entry} is launched with {tags}")
    sizes = {tag: _number(x, meanings) for tag, x in zip(tags, rest, strict=True)}
    names = list(maps)
    return {
        "entry": entry,
        "grid": [sizes.get(tag, 1) for tag in _GRID],
        "block": [sizes.get(tag, 1) for tag in _BLOCK],
        "shared": sizes.get(_SHARED, 0),
        "maps": list(maps.values()),
        "parameters": [_parameter(x, names, meanings) for x in given],
    }


def arguments_of(made: Any, order: Sequence[str]) -> dict[str, list[Any]]:
    """What the variables of a traced kernel are, by the names they got: addresses, numbers, extents and strides."""
    found: dict[str, list[Any]] = {}
    for param, mine in zip(made.params, order, strict=True):
        buffer = made.buffer_map.get(param)
        if buffer is None:
            found[str(param.name)] = ["number", mine]
            continue
        found[str(buffer.data.name)] = ["address", mine]
        for what, extents in (("size", buffer.shape), ("stride", buffer.strides)):
            for axis, extent in enumerate(extents):
                if hasattr(extent, "name"):
                    found.setdefault(str(extent.name), [what, mine, axis])
    return found


def _packed_calls(body: Any) -> list[tuple[str, list[Any]]]:
    """The functions that a host calls by name, in order, with their arguments."""
    from tilelang import tvm

    found: list[tuple[str, list[Any]]] = []

    def visit(node: Any) -> None:
        if not isinstance(node, tvm.tirx.Call):
            return
        if str(getattr(node.op, "name", "")) in ("tirx.tvm_call_packed", "tirx.tvm_call_cpacked"):
            found.append((str(node.args[0].value), list(node.args[1:])))

    tvm.tirx.stmt_functor.post_order_visit(body, visit)
    return found


def _map(arguments: Sequence[Any], meanings: Mapping[str, list[Any]]) -> dict[str, Any]:
    """The arguments of ``cuTensorMapEncodeTiled``; strides are in bytes, and the first is not passed on."""
    dtype, rank, address, *rest = arguments
    n = int(rank)
    if len(rest) != 4 * n + 4:
        raise InternalError("tilelang launch", f"a tensor map of rank {n} has {len(rest)} numbers")
    numbers = [_number(x, meanings) for x in rest]
    interleave, swizzle, promotion, fill = numbers[4 * n :]
    return {
        "type": int(dtype),
        "tensor": _address(address, meanings),
        "sizes": numbers[:n],
        "strides": numbers[n + 1 : 2 * n],
        "box": numbers[2 * n : 3 * n],
        "steps": numbers[3 * n : 4 * n],
        "interleave": interleave,
        "swizzle": swizzle,
        "promotion": promotion,
        "fill": fill,
    }


def _parameter(x: Any, maps: Sequence[str], meanings: Mapping[str, list[Any]]) -> list[Any]:
    """``["map", which]``, ``["address", argument]`` or ``[type, number]``."""
    name = str(getattr(x, "name", ""))
    if name in maps:
        return ["map", maps.index(name)]
    if str(x.dtype) == "handle":
        return ["address", _address(x, meanings)]
    if str(x.dtype) not in _NUMBERS:
        raise InternalError("tilelang launch", f"a parameter is of type {x.dtype}")
    return [str(x.dtype), _number(x, meanings)]


def _address(x: Any, meanings: Mapping[str, list[Any]]) -> str:
    meaning = meanings.get(str(getattr(x, "name", "")), [""])
    if meaning[0] != "address":
        raise InternalError("tilelang launch", f"{x} is no argument's address")
    return str(meaning[1])


def _number(x: Any, meanings: Mapping[str, list[Any]]) -> Any:
    """A number, or a list that ``tilelang_binary.evaluate`` knows."""
    kind = type(x).__name__
    if isinstance(x, int) or kind == "IntImm":
        return int(x)
    if kind in ("Var", "SizeVar"):
        meaning = meanings.get(str(x.name), ["address"])
        if meaning[0] != "address":
            return meaning
    if kind == "Cast" and str(x.dtype) in _NUMBERS[:2]:
        return _number(x.value, meanings)
    if kind in _OPERATORS:
        return [_OPERATORS[kind], _number(x.a, meanings), _number(x.b, meanings)]
    raise InternalError("tilelang launch", f"no launcher knows {kind} {x}")
