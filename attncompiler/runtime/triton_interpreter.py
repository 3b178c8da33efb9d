"""Corrects Triton's CPU interpreter, so that kernels run in it compute what they compute on a device.

With TRITON_INTERPRET=1 set before triton is imported, a kernel runs as Python on numpy arrays. numpy has no bfloat16
and no 8-bit floats, so their values are bit patterns in unsigned integers there, and Triton 3.6 to 3.9 forgets that in
many places. ``repair`` replaces those, and the few that treat NaN, warnings or scalars otherwise than a device does.
It also spares a call of a device function what its kernel has done already, a third of all time.
``tests/test_triton/test_interpreter.py`` shows every defect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attncompiler.errors import InternalError
from attncompiler.runtime.interpreting import is_interpreting as is_interpreting

Array = NDArray[Any]
Method = Callable[..., Any]

# Types that numpy does not have.
_CODED = {
    "bf16": "bfloat16",
    "fp8e5": "float8_e5m2",
    "fp8e4nv": "float8_e4m3fn",
    "fp8e5b16": "float8_e5m2fnuz",
    "fp8e4b8": "float8_e4m3fnuz",
}
_MARK = "_attncompiler_repaired"
# What this file replaces or calls, by the class (or the module) of the interpreter that has it.
_EXPECTED = {
    "InterpreterBuilder": (
        "cast_impl",
        "create_fp_to_fp",
        "binary_op",
        "unary_op",
        "ternary_op",
        "create_fma",
        "create_dot",
        "create_clampf",
        "create_maxnumf",
        "create_minnumf",
        "create_atomic_rmw",
        "create_masked_load",
        "create_masked_store",
    ),
    "ReduceOps": ("sum", "min_max", "to_tensor"),
    "GridExecutor": ("__call__",),
    "InterpretedFunction": ("__call__", "rewrite"),
    "TensorDescHandle": ("materialize_pointers",),
    "": (
        "TensorHandle",
        "_get_np_dtype",
        "_validate_np_data_size",
        "_implicit_cvt",
        "_ir",
        "_patch_lang",
        "_patch_lang_core",
    ),
}


def repair() -> None:
    """Replaces the wrong parts of the interpreter, once a process; does nothing when kernels are compiled.

    Raises InternalError when this version's interpreter is not built as the replacements suppose.
    """
    if not is_interpreting():
        return
    from triton.runtime import interpreter

    if getattr(interpreter, _MARK, False):
        return
    for owner, names in _EXPECTED.items():
        place = getattr(interpreter, owner, None) if owner else interpreter
        missing = [name for name in names if not hasattr(place, name)]
        if missing:
            import triton

            absent = ", ".join(f"{owner}.{name}".lstrip(".") for name in missing)
            raise InternalError(
                "attncompiler/runtime/triton_interpreter.py",
                f"written for the interpreter of triton 3.6 to 3.9; {triton.__version__}'s has no {absent}",
            )
    for part in (
        _hasten,
        _repair_floats,
        _repair_types,
        _repair_numbers,
        _repair_memory,
        _repair_reductions,
        _repair_calls,
    ):
        part(interpreter)
    setattr(interpreter, _MARK, True)


def _coded(dtype: Any) -> Any:
    """The torch type of a Triton type that numpy stores as bit patterns; None for the others."""
    name = _CODED.get(dtype.scalar.name)
    if name is None:
        return None
    import torch

    return getattr(torch, name)


def _decoded(handle: Any) -> Array:
    """The values of a handle as numbers."""
    import torch

    coded = _coded(handle.dtype)
    if coded is None:
        return np.asarray(handle.data)
    # A copy, because torch wants memory that may be written, and broadcast arrays may not be.
    signed = handle.data.astype(f"int{8 * handle.data.itemsize}")
    values: Array = torch.from_numpy(signed).view(coded).float().numpy()
    return values


def _encoded(values: Array, dtype: Any, plain: np.dtype[Any]) -> Array:
    """Numbers as a handle of type ``dtype`` stores them, rounded to nearest, ties to even."""
    import torch

    coded = _coded(dtype)
    if coded is None:
        return values.astype(plain)
    if values.dtype.kind != "f":
        values = values.astype(np.float32)
    patterns = torch.from_numpy(np.array(values)).to(coded)
    stored: Array = patterns.view(getattr(torch, f"int{8 * plain.itemsize}")).numpy().view(plain)
    return stored


def _repair_floats(interpreter: Any) -> None:
    """bfloat16 and 8-bit floats: conversions (they truncate), arithmetic and products (they use bit patterns)."""
    import triton.language as tl

    builder = interpreter.InterpreterBuilder
    handle, plain = interpreter.TensorHandle, interpreter._get_np_dtype
    to_float = builder.create_fp_to_fp

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        scalar = target.scalar
        return handle(_encoded(_decoded(source), scalar, plain(scalar)), scalar)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if rounding in (None, interpreter._ir.ROUNDING_MODE.RTNE):
            return self.cast_impl(source, target)
        return to_float(self, source, target, rounding)

    def lifted(name: str) -> Method:
        """An elementwise method that works on numbers where an operand is stored as bit patterns.

        A comparison has the type int1: with that of its operands, Triton spreads a scalar one as a number.
        """
        original = getattr(builder, name)

        def method(self: Any, *operands: Any) -> Any:
            *arguments, operation = operands
            if all(_coded(a.dtype) is None for a in arguments) or operation is np.where:
                result = original(self, *operands)
            else:
                scalar = arguments[-1].dtype.scalar
                values = operation(*map(_decoded, arguments))
                if values.dtype != bool:
                    values = _encoded(values, scalar, plain(scalar))
                result = handle(values, scalar)
            if result.data.dtype == bool:
                result.dtype = tl.int1
            return result

        return method

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        total = _decoded(d)
        product = np.matmul(_decoded(a), _decoded(b), dtype=total.dtype)
        scalar = d.dtype.scalar
        return handle(_encoded(product + total, scalar, plain(scalar)), scalar)

    def get_bf16(self: Any, value: float) -> Any:
        values = np.array([value], np.float32)
        return handle(_encoded(values, tl.bfloat16, np.dtype(np.uint16)), tl.bfloat16)

    builder.cast_impl, builder.create_fp_to_fp = cast_impl, create_fp_to_fp
    builder.create_dot, builder.get_bf16 = create_dot, get_bf16
    for name in ("unary_op", "binary_op", "ternary_op"):
        setattr(builder, name, lifted(name))


def _repair_types(interpreter: Any) -> None:
    """8-bit floats without a negative zero, AMD's first ones, have no name for the builder."""
    patch = interpreter._patch_lang_core

    def patched(language: Any, *scope: Any) -> None:
        patch(language, *scope)
        known = language.dtype.to_ir

        def to_ir(self: Any, builder: Any) -> Any:
            if self.name in ("fp8e4b8", "fp8e5b16"):
                return getattr(builder, f"get_{self.name}_ty")()
            return known(self, builder)

        language.dtype.to_ir = to_ir

    interpreter._patch_lang_core = patched


def _repair_numbers(interpreter: Any) -> None:
    """``tl.fma`` rounds once; minima and maxima pass over a NaN unless it is to propagate."""
    builder = interpreter.InterpreterBuilder
    handle, plain = interpreter.TensorHandle, interpreter._get_np_dtype
    clamp = builder.create_clampf

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        scalar = z.dtype.scalar
        values = _fused(_decoded(x), _decoded(y), _decoded(z))
        return handle(_encoded(values, scalar, plain(scalar)), scalar)

    def create_clampf(self: Any, x: Any, low: Any, high: Any, propagate: Any) -> Any:
        if propagate == interpreter._ir.PROPAGATE_NAN.ALL:
            return clamp(self, x, low, high, propagate)
        return self.create_minnumf(self.create_maxnumf(x, low), high)

    builder.create_fma, builder.create_clampf = create_fma, create_clampf
    builder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)
    builder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)


def _fused(x: Array, y: Array, z: Array) -> Array:
    """x y + z, for floats of at most 32 bits rounded once.

    The product is exact in float64. Its sum with z is rounded to odd there: of an inexact one's two neighbours the one
    with a last bit of 1 is taken, so that the rounding to float32 that follows never sees a tie that was none.
    """
    if x.dtype == np.float64 or x.dtype.kind != "f":
        return np.asarray(x * y + z)
    product, addend = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
    total = np.asarray(product + addend)
    back = total - product
    error = (product - (total - back)) + (addend - back)
    inexact = np.isfinite(total) & (error != 0) & (total.view(np.int64) & 1 == 0)
    toward = np.where(error > 0, np.inf, -np.inf)
    return np.where(inexact, np.nextafter(total, toward), total).astype(x.dtype)


def _repair_memory(interpreter: Any) -> None:
    """Atomic operations that raise: those on bfloat16, exchanges of floats, and reductions into descriptors."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    plain, kinds = interpreter._get_np_dtype, interpreter._ir.ATOMIC_OP
    original = builder.create_atomic_rmw
    rules: dict[Any, Method] = {
        kinds.FADD: np.add,
        kinds.MAX: np.fmax,
        kinds.MIN: np.fmin,
        kinds.XCHG: lambda old, new: new,
    }

    def create_atomic_rmw(self: Any, kind: Any, ptr: Any, value: Any, mask: Any, *how: Any) -> Any:
        exchanged = kind == kinds.XCHG and value.data.dtype.kind == "f"
        if not exchanged and _coded(value.dtype) is None:
            return original(self, kind, ptr, value, mask, *how)
        # One after the other: a block may name the same address twice.
        scalar, shape = value.dtype.scalar, np.broadcast_shapes(ptr.data.shape, value.data.shape)
        places, values, chosen = (
            np.broadcast_to(a.data, shape).reshape(-1, 1).copy() for a in (ptr, value, mask)
        )
        found = np.zeros((places.size, 1), plain(scalar))
        for at in np.flatnonzero(chosen):
            place = handle(places[at], ptr.dtype)
            here = handle(chosen[at], mask.dtype)
            old = self.create_masked_load(place, here, None, None, None, False)
            new = rules[kind](_decoded(old), _decoded(handle(values[at], scalar)))
            stored = handle(_encoded(new, scalar, plain(scalar)), scalar)
            self.create_masked_store(place, stored, here, None, None)
            found[at] = old.data
        return handle(found.reshape(shape), scalar)

    def create_descriptor_reduce(self: Any, kind: Any, desc: Any, value: Any, at: Any) -> Any:
        import triton.language as tl

        pointers, inside = desc.materialize_pointers(at)
        name = str(kind).rpartition(".")[2].upper()
        if name == "ADD" and value.dtype.scalar.is_floating():
            name = "FADD"
        relaxed = interpreter._ir.MEM_SEMANTIC.RELAXED
        mask = handle(inside, tl.int1)
        return self.create_atomic_rmw(getattr(kinds, name), pointers, value, mask, relaxed, None)

    builder.create_atomic_rmw = create_atomic_rmw
    if not hasattr(builder, "create_descriptor_reduce"):
        builder.create_descriptor_reduce = create_descriptor_reduce


def _repair_reductions(interpreter: Any) -> None:
    """Sums of bfloat16 add bit patterns, and the extremum of NaNs alone warns."""
    reduction, handle = interpreter.ReduceOps, interpreter.TensorHandle
    plain, total, extremum = interpreter._get_np_dtype, reduction.sum, reduction.min_max

    def sum_(self: Any, given: Any) -> Any:
        scalar = given.dtype.scalar
        if _coded(scalar) is None:
            return total(self, given)
        import triton.language as tl

        numbers = tl.tensor(handle(_decoded(given.handle), tl.float32), tl.float32)
        result = total(self, numbers).handle.data
        encoded = _encoded(result, scalar, plain(scalar))
        kept = encoded if np.ndim(result) and self.axis is not None else encoded.reshape(-1)[0]
        return self.to_tensor(kept, scalar)

    def min_max(self: Any, given: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
        quiet = {np.nanmax: np.fmax.reduce, np.nanmin: np.fmin.reduce}
        return extremum(self, given, quiet.get(val_reduce_op, val_reduce_op), idx_reduce_op)

    reduction.sum, reduction.min_max = sum_, min_max


def _repair_calls(interpreter: Any) -> None:
    """A kernel's float arguments are float32 and its bool ones int1; it never warns of an overflow or a NaN."""
    convert, run = interpreter._implicit_cvt, interpreter.GridExecutor.__call__

    def implicit(argument: Any) -> Any:
        import triton.language as tl

        if isinstance(argument, bool):
            return tl.tensor(interpreter.TensorHandle(np.array([argument]), tl.int1), tl.int1)
        if isinstance(argument, float):
            value = np.array([argument], np.float32)
            return tl.tensor(interpreter.TensorHandle(value, tl.float32), tl.float32)
        return convert(argument)

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        with np.errstate(all="ignore"):
            return run(self, *arguments, **keywords)

    interpreter._implicit_cvt = implicit
    interpreter.GridExecutor.__call__ = call


def _hasten(interpreter: Any) -> None:
    """A launch replaces the language once for each file, not in every call; element types are looked up once."""
    find, run = interpreter._get_np_dtype, interpreter.GridExecutor.__call__
    known: dict[str, Any] = {}
    replaced = set[int]()

    def plain(dtype: Any) -> Any:
        scalar = dtype.scalar
        found = known.get(scalar.name)
        if found is None:
            found = known[scalar.name] = find(scalar)
        return found

    def launch(self: Any, *arguments: Any, **keywords: Any) -> Any:
        replaced.clear()
        return run(self, *arguments, **keywords)

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        file = id(self.fn.__globals__)
        if file not in replaced:
            interpreter._patch_lang(self.fn)
            replaced.add(file)
        try:
            return self.rewrite()(*arguments, **keywords)
        except Exception as e:
            raise interpreter.InterpreterError(repr(e)) from e

    interpreter._get_np_dtype = plain
    interpreter.GridExecutor.__call__ = launch
    interpreter.InterpretedFunction.__call__ = call
