"""Registers a compilation with torch: one forward and one backward op, their fake forms, autograd between them.

The forward op of a variant ``Name`` is ``torch.ops.attncompiler.Name_<hash>``::

    (q, k, v, tensors..., SymInt q_start, float scale, params..., bool stats, bool train)
        -> (out, kept, saved, value)

``kept`` is ``[n, B, H, M]``, the kept row statistics where ``stats`` asks for them (else n is 0). ``train`` asks for
what the backward needs: ``saved`` ``[n, B, H, M]``, final statistics, and ``value`` ``[B, H, M, Dv]``, the output
before the epilogue where it is not ``out`` itself (else ``[0]``). The backward op ``Name_<hash>_backward`` gives the
gradients of q, k, v and every floating tensor, ``[0]`` for those not wanted.

The hash covers the program and this schema, so a graph that was exported finds its ops in any process that has
compiled the variant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from attncompiler.runtime.cache import content_key
from attncompiler.runtime.call_checks import check_inputs, check_tensors, check_trains, sizes_of
from attncompiler.runtime.engine import EngineSet
from attncompiler.runtime.errors import DoubleBackwardError
from attncompiler.runtime.signature import Described, output_type, real_of

# The package's own name: a package made by ``attncompiler build`` carries this file and has another.
_NAMESPACE = (__package__ or "").rpartition(".")[0].replace(".", "_")
LIBRARY: Any = cast(Any, torch.library.Library)(_NAMESPACE, "FRAGMENT")
_SCHEMA_TYPES = {"float": "float", "int": "SymInt", "bool": "bool"}
# Inductor may not hand over tensors in another order of strides than the traced one: last axes stay contiguous.
_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)


@dataclass(frozen=True, slots=True)
class Registered:
    """The ops of one program."""

    forward: torch._ops.OpOverload
    backward: torch._ops.OpOverload


# By name: the ops, and the compilation that runs them.
_registered: dict[str, Registered] = {}
_programs: dict[str, _Program] = {}


def register(engines: EngineSet) -> Registered:
    """The ops of a compilation. A program has one pair in a process; its newest compilation runs them."""
    kernels = engines.kernels
    tensors = "".join(f"Tensor tensor_{t.name}, " for t in kernels.signature.tensors)
    params = "".join(f"{_SCHEMA_TYPES[p.kind]} param_{p.name}, " for p in kernels.signature.params)
    call = f"Tensor q, Tensor k, Tensor v, {tensors}SymInt q_start, float scale, {params}"
    floats = [t.name for t in kernels.signature.tensors if t.kind == "float"]
    forward = (
        f"({call}bool stats, bool train) -> (Tensor out, Tensor kept, Tensor saved, Tensor value)"
    )
    gradients = ", ".join(
        f"Tensor grad_{n}" for n in ("q", "k", "v", *(f"tensor_{n}" for n in floats))
    )
    backward = f"(Tensor grad, Tensor? grad_kept, {call}Tensor saved, Tensor value, bool[] wanted) -> ({gradients})"
    parts: tuple[str, ...] = (kernels.identity, forward)
    if engines.backend in ("triton", "tilelang"):  # on the CPU each is another program
        parts += (engines.backend,)
    if not engines.deterministic:
        parts += ("any order",)
    if engines.tune is not None:
        parts += ("tunes",)
    digest = content_key(*parts)[:12]
    name = f"{re.sub('[^a-zA-Z0-9_]', '_', kernels.name)}_{digest}"
    _programs[name] = _Program(engines, name)
    if name not in _registered:
        _registered[name] = _define(name, forward, backward)
    return _registered[name]


def _define(name: str, forward: str, backward: str) -> Registered:
    back = f"{name}_backward"
    LIBRARY.define(name + forward, tags=_TAGS)
    LIBRARY.define(back + backward, tags=_TAGS)
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, lambda *a: _programs[name].forward(*a), device)
        LIBRARY.impl(back, lambda *a: _programs[name].backward(*a), device)

    def register(op: str, fake: Any, gradient: Any, setup_context: Any) -> None:
        qualified = f"{_NAMESPACE}::{op}"
        torch.library.register_fake(qualified, fake, lib=LIBRARY)
        torch.library.register_autograd(
            qualified, gradient, setup_context=setup_context, lib=LIBRARY
        )

    register(
        name,
        lambda *a: _programs[name].fake_forward(*a),
        lambda ctx, *g: _programs[name].gradient(ctx, *g),
        lambda ctx, inputs, output: _programs[name].save(ctx, inputs, output),
    )
    register(
        back,
        lambda *a: _programs[name].fake_backward(*a),
        lambda ctx, *g: _programs[name].refuse_second_gradient(),
        lambda ctx, inputs, output: None,
    )
    ops = getattr(torch.ops, _NAMESPACE)
    return Registered(getattr(ops, name).default, getattr(ops, back).default)


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments that the forward and the backward op share."""

    q: Tensor
    k: Tensor
    v: Tensor
    captured: Sequence[Tensor]
    q_start: int
    scale: float
    numbers: Sequence[float]

    def check(self, kernels: Described) -> None:
        """Raise what a call of the operator would; for fake tensors, whose sizes may be symbols."""
        check_inputs(self.q, self.k, self.v, self.q_start)
        sizes = sizes_of(self.q, self.v)
        check_tensors(kernels.name, kernels.signature.tensors, self.captured, sizes, self.q.device)


class _Program:
    """What the ops of one program do."""

    def __init__(self, engines: EngineSet, name: str) -> None:
        self.engines = engines
        self.kernels = kernels = engines.kernels
        self.name = name
        self.tensors = len(kernels.signature.tensors)
        self.floats = [i for i, t in enumerate(kernels.signature.tensors) if t.kind == "float"]

    def _call(self, arguments: Sequence[Any]) -> tuple[_Call, Sequence[Any]]:
        """The common arguments, and what follows them."""
        end = 3 + self.tensors
        stop = end + 2 + len(self.kernels.signature.params)
        q, k, v = arguments[:3]
        call = _Call(
            q, k, v, arguments[3:end], arguments[end], arguments[end + 1], arguments[end + 2 : stop]
        )
        return call, arguments[stop:]

    # -- forward -----------------------------------------------------------------------------------------------

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        call, (stats, train) = self._call(arguments)
        out, *rest = self.engines.of(call.q).forward(
            call.q,
            call.k,
            call.v,
            call.captured,
            call.q_start,
            call.scale,
            call.numbers,
            stats,
            train,
        )
        real, rows = real_of(out.dtype), (0, *out.shape[:3])
        kept, saved, value = (
            out.new_empty(shape, dtype=real) if x is None else x
            for x, shape in zip(rest, (rows, rows, (0,)), strict=True)
        )
        return out, kept, saved, value

    def fake_forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        call, (stats, train) = self._call(arguments)
        call.check(self.kernels)
        if train:
            check_trains(self.kernels.name, call.q.dtype)
        batch, heads, queries, _ = call.q.shape
        shape = (batch, heads, queries, call.v.shape[3])
        real = real_of(call.q.dtype)

        def rows(count: int) -> Tensor:
            return call.q.new_empty((count, *shape[:3]), dtype=real)

        kept = rows(len(self.kernels.signature.kept) if stats else 0)
        saved = rows(len(self.kernels.saved) if train else 0)
        separate = train and self.kernels.saves_value(call.q.dtype)
        value = call.q.new_empty(shape if separate else (0,), dtype=real)
        out = call.q.new_empty(shape, dtype=output_type(call.q.dtype))
        return out, kept, saved, value

    # -- autograd ----------------------------------------------------------------------------------------------

    def save(self, ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
        """Keep for the backward: the tensors of the call, and what the forward computed for it."""
        call, (stats, train) = self._call(inputs)
        out, _, saved, value = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(saved, value)
        reads_out = train and self._reads_out(call.q.dtype)
        ctx.save_for_backward(
            call.q, call.k, call.v, *call.captured, saved, out if reads_out else value
        )
        ctx.numbers = (call.q_start, call.scale, *call.numbers)
        ctx.stats, ctx.train = stats and bool(self.kernels.signature.kept), train

    def _reads_out(self, dtype: torch.dtype) -> bool:
        """Whether the backward reads the forward's output."""
        return self.kernels.reads_value and not self.kernels.saves_value(dtype)

    def gradient(self, ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the forward op's arguments."""
        grad, grad_kept = gradients[0], gradients[1] if ctx.stats else None
        *tensors, saved, value = ctx.saved_tensors
        forward, backward = _registered[self.name].forward, _registered[self.name].backward
        places = [0, 1, 2, *(3 + i for i in self.floats)]
        wanted = [ctx.needs_input_grad[i] for i in places]
        q, _, v = tensors[:3]
        if not ctx.train:  # the op was called by itself, without asking for what this needs
            with torch.no_grad():
                out, _, saved, value = forward(*tensors, *ctx.numbers, False, True)
            if self._reads_out(q.dtype):
                value = out
        if grad is None:  # only statistics were used
            grad = q.new_zeros(()).expand(*q.shape[:3], v.shape[3])
        found = backward(grad, grad_kept, *tensors, *ctx.numbers, saved, value, wanted)
        result: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for place, needed, x in zip(places, wanted, found, strict=True):
            result[place] = x if needed else None
        return tuple(result)

    def refuse_second_gradient(self) -> None:
        raise DoubleBackwardError(variant=self.kernels.name)

    # -- backward ----------------------------------------------------------------------------------------------

    def backward(
        self, grad: Tensor, grad_kept: Tensor | None, *arguments: Any
    ) -> tuple[Tensor, ...]:
        call, (saved, value, wanted) = self._call(arguments)
        kernel = self.kernels.signature
        captured = dict(zip((t.name for t in kernel.tensors), call.captured, strict=True))
        floats = [kernel.tensors[i].name for i in self.floats]
        found = self.engines.of(call.q).backward(
            (call.q, call.k, call.v),
            grad,
            {}
            if grad_kept is None
            else dict(zip(self.kernels.signature.kept, grad_kept, strict=True)),
            captured,
            q_start=call.q_start,
            scale=call.scale,
            params=dict(zip((p.name for p in kernel.params), call.numbers, strict=True)),
            saved=dict(zip(self.kernels.saved, saved, strict=True)),
            value=value,
            wants=(wanted[0], wanted[1], wanted[2]),
            wanted=self.kernels.learns & {n for n, w in zip(floats, wanted[3:], strict=True) if w},
        )
        # A tensor that only masks, comparisons or rounded numbers read has the gradient 0. A package's kernel may give
        # more than is wanted.
        result = (found.q, found.k, found.v, *(found.tensors.get(n) for n in floats))
        inputs = (call.q, call.k, call.v, *(captured[n] for n in floats))
        return tuple(
            x if needed and x is not None else y.new_zeros(y.shape if needed else (0,))
            for x, y, needed in zip(result, inputs, wanted, strict=True)
        )

    def fake_backward(
        self, grad: Tensor, grad_kept: Tensor | None, *arguments: Any
    ) -> tuple[Tensor, ...]:
        call, (_, _, wanted) = self._call(arguments)
        inputs = (call.q, call.k, call.v, *(call.captured[i] for i in self.floats))
        dense = (torch.empty_like(call.q), *(x.new_empty(x.shape) for x in inputs[1:]))
        return tuple(
            x if needed else x.new_empty(0) for x, needed in zip(dense, wanted, strict=True)
        )
