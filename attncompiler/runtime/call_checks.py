"""Checks a call of an operator against its declaration, before anything is built or launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attncompiler import errors
from attncompiler.ir.declared import Kind, TensorDecl
from attncompiler.runtime.errors import (
    DeviceError,
    DtypeError,
    EightBitGradientError,
    ForwardModeError,
    LayoutError,
    LimitError,
    TransformError,
)
from attncompiler.runtime.scalars import checked_value

ELEMENT_TYPES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float64: "float64",
}
# Inputs of forward kernels on GPUs, whose results are bfloat16.
EIGHT_BITS = {
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
    torch.float8_e4m3fnuz: "float8_e4m3fnuz",
    torch.float8_e5m2fnuz: "float8_e5m2fnuz",
}
INPUT_TYPES = ELEMENT_TYPES | EIGHT_BITS
CAPTURED_TYPES: dict[str, dict[torch.dtype, str]] = {
    "float": ELEMENT_TYPES,
    "int": {
        torch.int64: "int64",
        torch.int32: "int32",
        torch.int16: "int16",
        torch.int8: "int8",
        torch.uint8: "uint8",
    },
    "bool": {torch.bool: "bool"},
}
DEVICES = ("cpu", "cuda")
LARGEST_HEAD = 512
LARGEST_POSITION = 2**30


def check_inputs(q: Tensor, k: Tensor, v: Tensor, q_start: int) -> None:
    """Raise the error that fits when q, k and v are not what attention takes.

    q is ``[B, H, M, D]``, k ``[B, G, N, D]``, v ``[B, G, N, Dv]``; H is a multiple of G; one floating dtype, of which
    engines may refuse some; on one device, the CPU or a GPU; last axes contiguous; positions below 2**30. Symbolic
    lengths of a trace stand for numbers that the call of the traced operator checks.
    """
    named = (("q", q), ("k", k), ("v", v))
    for name, x in named:
        check_storage(name, x, None if name == "q" else q.device)
        if x.dim() != 4:
            raise errors.ShapeError(
                name=name,
                detail=f"it has shape {list(x.shape)}, expected four axes [batch, heads, length, head_dim]",
                fix=f"reshape it; a single sequence is {name}[None, None]",
            )
        if x.shape[3] > 1 and x.stride(3) != 1:
            raise LayoutError(name=name, stride=x.stride(3))
        if x.dtype not in INPUT_TYPES:
            raise DtypeError(
                name=name,
                detail=f"elements of type {x.dtype} are not supported",
                fix="convert it to float32, bfloat16, float16 or float64",
            )
    for name, x in named[1:]:
        if x.dtype != q.dtype:
            raise DtypeError(
                name=name,
                detail=f"it is {x.dtype} and q is {q.dtype}",
                fix=f"pass {name}.to(q.dtype)",
            )
    _check_shapes(q, k, v)
    queries, keys = q.shape[2], k.shape[2]
    if not all(isinstance(n, int) for n in (q_start, queries, keys)):
        return
    if not 0 <= q_start <= LARGEST_POSITION - queries or keys > LARGEST_POSITION:
        raise LimitError(
            name="q_start" if keys <= LARGEST_POSITION else "the number of keys",
            value=q_start if keys <= LARGEST_POSITION else keys,
            limit="positions run from 0 to 2**30 - 1",
            fix="split the sequence, or pass the position of the first query",
        )


def refuse_eight_bits(why: str) -> NoReturn:
    """Raise the error of 8-bit inputs that an engine does not take."""
    fix = "convert q, k and v to bfloat16, which holds them exactly: q.to(torch.bfloat16)"
    raise DtypeError(name="q", detail=why, fix=fix)


def check_trains(variant: str, dtype: torch.dtype) -> None:
    """Raise EightBitGradientError for a call that wants gradients of inputs which no backward kernel takes."""
    if dtype in EIGHT_BITS:
        raise EightBitGradientError(variant=variant, dtype=EIGHT_BITS[dtype])


def sizes_of(q: Tensor, v: Tensor) -> dict[str, int]:
    """The sizes that axes of captured tensors are declared over."""
    batch, heads, queries, _ = q.shape
    _, groups, keys, value_dim = v.shape
    return {"B": batch, "H": heads, "G": groups, "M": queries, "N": keys, "Dv": value_dim}


def within_positions(q_start: int) -> bool:
    """Whether a call may start there; a symbol of a trace may."""
    return not isinstance(q_start, int) or 0 <= q_start < LARGEST_POSITION


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    (batch, heads, _, dim), (k_batch, groups, keys, k_dim) = q.shape, k.shape
    v_batch, v_groups, v_keys, v_dim = v.shape

    def refuse(name: str, detail: str, fix: str) -> None:
        raise errors.ShapeError(name=name, detail=detail, fix=fix)

    if k_batch != batch or v_batch != batch:
        name = "k" if k_batch != batch else "v"
        refuse(
            name,
            f"its batch is {k_batch if name == 'k' else v_batch}, the batch of q is {batch}",
            f"expand it: {name}.expand({batch}, -1, -1, -1) copies nothing",
        )
    if v_groups != groups:
        refuse("v", f"it has {v_groups} heads, k has {groups}", "give k and v the same heads")
    if v_keys != keys:
        refuse("v", f"it has length {v_keys}, k has {keys}", "give k and v the same length")
    if k_dim != dim:
        refuse(
            "k",
            f"its head_dim is {k_dim}, that of q is {dim}",
            "queries and keys need one head_dim",
        )
    if heads and (groups == 0 or heads % groups):
        refuse(
            "q",
            f"it has {heads} heads, which is no multiple of the {groups} heads of k and v",
            "with grouped queries the number of query heads is a multiple of the key/value heads",
        )
    for name, size in (("q", dim), ("v", v_dim)):
        if not 1 <= size <= LARGEST_HEAD:
            raise LimitError(
                name=f"the head_dim of {name}",
                value=size,
                limit=f"kernels are built for 1 to {LARGEST_HEAD}",
                fix="split the heads",
            )


def check_storage(name: str, x: object, device: torch.device | None = None) -> None:
    """Raise unless ``x`` is an ordinary tensor on ``device``, or on any that has kernels; a tracer's fake one is."""
    if not isinstance(x, Tensor):
        raise DtypeError(
            name=name,
            detail=f"expected a torch tensor, got {type(x).__name__}",
            fix="pass a tensor",
        )
    if x.device.type not in DEVICES:
        refuse_device(name, x.device, "kernels run on the CPU and on CUDA devices", "cpu")
    if device is not None and x.device != device:
        refuse_device(name, x.device, f"q is on {device}", str(device))
    if x.layout != torch.strided:
        raise DtypeError(
            name=name, detail=f"its layout is {x.layout}", fix=f"pass {name}.to_dense()"
        )


def refuse_device(
    name: str, device: torch.device, why: str, target: str, other: str = ""
) -> NoReturn:
    """Raise the error of a tensor that should be on another device; ``other`` is what else would help."""
    fix = f"{name}.cpu()" if target == "cpu" else f'{name}.to("{target}")'
    raise DeviceError(name=name, device=device, why=why, fix=f"move it: {fix}{other}")


def check_transforms(name: str, x: object) -> None:
    """Refuse what the registered ops have no rule for: tangents of forward mode, and transforms of torch.func."""
    if not isinstance(x, Tensor):
        return
    if forward_ad._current_level >= 0 and _has_tangent(x):
        raise ForwardModeError(name=name)
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise TransformError(name=name)


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def check_tensors(
    variant: str,
    declarations: Sequence[TensorDecl],
    given: Sequence[Tensor | None],
    sizes: Mapping[str, int],
    device: torch.device | None = None,
) -> tuple[str, ...]:
    """The element types of the captured tensors, after checking kinds and extents against the declarations.

    They must be on ``device``, where that is given.
    """
    free: dict[str, tuple[int, str]] = {}
    types = []
    for decl, x in zip(declarations, given, strict=True):
        if x is None:
            raise errors.MissingTensorError(
                variant=variant, name=decl.name, axes=", ".join(map(str, decl.axes))
            )
        types.append(check_tensor(decl, x, device))
        _check_extents(decl, x, sizes, free)
    return tuple(types)


def check_tensor(decl: TensorDecl, x: Tensor, device: torch.device | None = None) -> str:
    """The element type of one captured tensor, after checking its kind and the number of its axes."""
    check_storage(decl.name, x, device)
    known = CAPTURED_TYPES[decl.kind]
    if x.dtype not in known:
        raise DtypeError(
            name=decl.name,
            detail=f"it is {x.dtype}, declared as {decl.kind}",
            fix=f"convert it to one of {', '.join(known.values())}",
        )
    if x.dim() != len(decl.axes):
        raise errors.ShapeError(
            name=decl.name,
            detail=f"it has shape {list(x.shape)}, declared with the axes ({_axes(decl)})",
            fix=f"give it {len(decl.axes)} axes",
        )
    return known[x.dtype]


_AXIS_SIZES = {"b": "B", "h": "H", "g": "G", "q": "M", "k": "N", "d": "Dv"}


def _axes(decl: TensorDecl) -> str:
    return ", ".join(map(str, decl.axes))


def _check_extents(
    decl: TensorDecl, x: Tensor, sizes: Mapping[str, int], free: dict[str, tuple[int, str]]
) -> None:
    for position, (axis, found) in enumerate(zip(decl.axes, x.shape, strict=True)):
        if isinstance(axis, int):
            wanted, why = axis, "its declaration"
        elif axis in _AXIS_SIZES:
            wanted, why = sizes[_AXIS_SIZES[axis]], f"the size of axis {axis!r} in this call"
        else:
            wanted, why = free.setdefault(axis, (found, f"axis {axis!r} of {decl.name}"))
        if found != wanted:
            raise errors.ShapeError(
                name=decl.name,
                detail=f"axis {position} ({axis}) has extent {found}, but {why} is {wanted}",
                fix=f"give it extent {wanted} there; its axes are ({_axes(decl)})",
            )


def number(variant: str, name: str, kind: Kind, value: Any) -> Any:
    """The value as a scalar of the kind; a tracer's symbolic number stays symbolic. Raises ParameterTypeError."""
    if kind == "float" and isinstance(value, (float, torch.SymFloat)):
        return value
    if kind == "float" and isinstance(value, torch.SymInt):
        return torch.sym_float(value)  # type: ignore[no-untyped-call]
    if kind == "int" and isinstance(value, torch.SymInt):
        return value
    # Dynamo shows symbolic numbers as ordinary ones that only arithmetic may look at.
    if torch.compiler.is_compiling() and isinstance(value, int) and not isinstance(value, bool):
        if kind == "int":
            return value
        if kind == "float":
            return float(value)
    return checked_value(variant, name, kind, value, None)


def check_least(limits: Mapping[str, tuple[int, str]], values: Mapping[str, Any]) -> None:
    """Raise TooSmallError for a parameter that is a window, a block ... and too small; symbols of a trace may be."""
    for name, (least, what) in limits.items():
        value = values.get(name)
        if type(value) is int and value < least:
            raise errors.TooSmallError(
                parameter=name,
                what=f"parameter {name!r}, the {what},",
                value=value,
                least=least,
            )
