"""Turns a variant into the calls of PyTorch that compute the same thing, or says why there is none.

Which peer can express a variant is read off its traced program: expressions are interned, so "the score is left as
it is" or "the weights are a softmax" is an identity of objects, not a guess from names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attncompiler.dsl import Tensor as Declared
from attncompiler.dsl import Variant, causal, sink_softmax
from attncompiler.frontend import trace
from attncompiler.ir.expr import Const, Dot, Index, walk
from attncompiler.ir.passes.canonicalize import canonicalize
from attncompiler.ir.program import Program
from attncompiler.preparation import run_prepare
from attncompiler.sdpa_peers import BACKENDS, backend_call, masked_call
from attncompiler.torch_formulas import Inputs, dense, module

PEERS = (*BACKENDS, "sdpa mask", "flex", "dense")

Attention = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a peer cannot express a variant."""

    reason: str


class _Causal(Variant):
    """What ``is_causal=True`` means."""

    def mask(self, at: Any) -> Any:
        return causal(at)


def peer(name: str, variant: Variant, inputs: Inputs) -> Attention | Refusal:
    """The call of one of PEERS, ready to be timed; compiled FlexAttention compiles here, on its first run."""
    match name:
        case "sdpa mask":
            return _sdpa_mask(variant, inputs)
        case _ if name in BACKENDS:
            return _sdpa(name, variant, inputs)
        case "flex":
            return _flex(variant, inputs)
        case "dense":
            return _dense(variant, inputs)
        case _:
            raise ValueError(f"unknown peer {name!r}, known are {', '.join(PEERS)}")


def _program(variant: Variant) -> Program:
    return canonicalize(trace(variant).program)


def _no_softmax(variant: Variant, program: Program, like: Variant | None = None) -> str | None:
    """Why a program's weights are not those of ``like``, plain softmax unless given; None when they are."""
    plain = _program(Variant() if like is None else like)
    if getattr(variant, "prepare", None) is not None:
        return "it has a prepare step"
    if (program.weight, program.reductions) != (plain.weight, plain.reductions):
        return "its weights are no softmax"
    if (program.output, program.output_reductions) != (plain.output, plain.output_reductions):
        return "it has an output step"
    return None


def _sdpa(name: str, variant: Variant, inputs: Inputs) -> Attention | Refusal:
    program = _program(variant)
    reason = _no_softmax(variant, program)
    if reason is not None:
        return Refusal(reason)
    if program.score is not Dot():
        return Refusal("it changes the score")
    if not _maskless(program):
        return Refusal("its mask is neither full nor causal")
    causal_mask = program.mask is not Const(True)
    return backend_call(name, inputs, causal_mask, _scale(variant, inputs))


def _sdpa_mask(variant: Variant, inputs: Inputs) -> Attention | Refusal:
    program = _program(variant)
    reason = _no_softmax(variant, program)
    if reason is not None:
        return Refusal(reason)
    if program.score is Dot() and _maskless(program):
        return Refusal("it needs no matrix")
    call = masked_call(program, trace(variant), inputs, _scale(variant, inputs))
    return call or Refusal("it does more to the score than add something")


def _maskless(program: Program) -> bool:
    """Whether the mask is one that needs no matrix: full or causal."""
    return program.mask is Const(True) or program.mask is _program(_Causal()).mask


def _sink(variant: Variant, program: Program) -> str | None:
    """The tensor that is the logit of a sink, if the weights are a softmax with one a head and nothing else."""
    for name, tensor in trace(variant).tensors.items():
        if tensor.axes != ("h",):
            continue

        def normalize(self: Any, s: Any, row: Any, name: str = name) -> Any:
            return sink_softmax(s, row, getattr(self, name)[row.h])

        like = type("Sink", (Variant,), {name: Declared("h"), "normalize": normalize})
        if _no_softmax(variant, program, like()) is None:
            return name
    return None


def _dense(variant: Variant, inputs: Inputs) -> Attention:
    traced = trace(variant)
    program = canonicalize(traced.program)

    def call() -> Tensor:
        given = inputs
        if hasattr(variant, "prepare"):
            tensors = dict(inputs.tensors)
            given = Inputs(*run_prepare(variant, inputs.q, inputs.k, inputs.v, tensors))
        return dense(program, traced, given, _scale(variant, given))

    return call


def _scale(variant: Variant, inputs: Inputs) -> float:
    return inputs.q.shape[-1] ** -0.5 if variant.scale is None else float(variant.scale)


def _flex(variant: Variant, inputs: Inputs) -> Attention | Refusal:
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    traced = trace(variant)
    program = canonicalize(traced.program)
    reason = _no_softmax(variant, program)
    sink = None if reason is None else _sink(variant, program)
    if reason is not None and sink is None:
        return Refusal(reason)
    score_mod = block_mask = None
    if program.score is not Dot():
        score_mod = module(program.score, traced, inputs, ("score", "b", "h", "q", "k"))
    if program.mask is not Const(True):
        sizes = inputs.sizes
        varies = {
            axis for node in walk(program.mask) if isinstance(node, Index) for axis in node.axis
        }
        block_mask = create_block_mask(
            module(program.mask, traced, inputs, ("b", "h", "q", "k")),
            sizes["B"] if "b" in varies else None,
            sizes["H"] if varies & {"h", "g"} else None,
            sizes["M"],
            sizes["N"],
            device=inputs.q.device,
        )
    scale = _scale(variant, inputs)
    # Each variant and shape is a compilation of its own; the default limit of eight is for one model's loop.
    config.recompile_limit = 1024
    config.accumulated_recompile_limit = 4096
    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def call() -> Tensor:
        out = compiled(
            inputs.q,
            inputs.k,
            inputs.v,
            score_mod=score_mod,
            block_mask=block_mask,
            scale=scale,
            enable_gqa=inputs.grouped,
            return_lse=sink is not None,
        )
        if sink is not None:
            # exp(lse) of the row's total weight exp(lse) + exp(sink) goes to its keys.
            out, lse = out
            out = out * torch.sigmoid(lse - inputs.tensors[sink][:, None])[..., None].to(out.dtype)
        assert isinstance(out, Tensor)
        return out

    try:
        with torch.no_grad():
            call()
    # What torch's compiler cannot do surfaces as RuntimeError (its own classes) or as one of these.
    except (RuntimeError, NotImplementedError, ValueError, AssertionError) as error:
        return Refusal(f"its compilation fails: {str(error).strip().splitlines()[0][:160]}")
    return call
