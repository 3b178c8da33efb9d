"""The door for FlexAttention code: turns a call of ``flex_attention`` into a call of a compiled operator.

``from attncompiler import flex_attention`` in place of torch's. The bodies are traced at every call; the operator is
found by the formulas they give, so new lengths, new numbers and new tensors build nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attncompiler import errors
from attncompiler.block_lists import block_lists
from attncompiler.block_sparse import BlockSparse
from attncompiler.compiler import compile_levels
from attncompiler.declarations import Tensor as Declared
from attncompiler.declarations import checked_value
from attncompiler.flex_bodies import NAME, Bodies, trace_bodies
from attncompiler.flex_program import program_of
from attncompiler.frontend import Trace
from attncompiler.ir.expr import Expr
from attncompiler.ir.passes.canonicalize import make
from attncompiler.ir.program import Program
from attncompiler.runtime.operator import Operator
from attncompiler.user_code import shows_call
from attncompiler.variant import Variant

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask

_LONGEST_NAME = 60
_OPERATORS: dict[tuple[Expr, Expr, bool], Operator] = {}


@torch.compiler.disable(  # type: ignore[untyped-decorator,no-untyped-call]
    reason="bodies are traced anew at each call; write a Variant and use attncompiler.compile inside torch.compile"
)
@shows_call
def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Any] | None = None,
    block_mask: BlockMask | BlockSparse | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Mapping[str, Any] | None = None,
    *,
    return_aux: AuxRequest | None = None,
    mask_mod: Callable[..., Any] | None = None,
) -> Any:
    """Attention with ``score_mod`` and ``block_mask`` as torch's ``flex_attention`` takes them, in one fused kernel.

    query is ``[B, H, M, D]``, key ``[B, G, N, D]``, value ``[B, G, N, Dv]``; the result is ``[B, H, M, Dv]``. H and G
    differ only with ``enable_gqa``. ``score_mod(score, b, h, q_idx, kv_idx)`` gives the score of a pair;
    ``mask_mod(b, h, q_idx, kv_idx)`` says whether it is allowed, with no BlockMask needed, and together with
    ``block_mask`` both must allow it. A BlockMask allows the pairs of its full blocks, and those of its other listed
    blocks that its own mask_mod allows; a BlockSparse those of its listed blocks.

    With ``return_lse`` the result is ``(out, lse)``, with ``return_aux`` it is ``(out, AuxOutput)``: ``lse`` is the
    natural log of the sum of exponentials and ``max_scores`` the largest score (no gradient flows through it), both
    ``[B, H, M]`` and -inf for a row without an allowed key, whose output is 0.

    ``kernel_options``: see ``_check_options``. Under ``torch.compile`` the call is a graph break. Raises a subclass
    of AttnCompilerError that names the user's line.
    """
    _check_options(kernel_options)
    query, key, value = _inputs(query, key, value, enable_gqa, block_mask)
    if return_lse and return_aux is not None:
        raise errors.ArgumentsError(
            name=NAME,
            detail="return_lse and return_aux exclude each other",
            fix="pass return_aux=AuxRequest(lse=True)",
        )
    max_scores = return_aux is not None and bool(return_aux.max_scores)
    sparsity = block_mask if isinstance(block_mask, BlockSparse) else None
    block_mask = None if isinstance(block_mask, BlockSparse) else block_mask
    operator, arguments = _operator(query, key, score_mod, block_mask, mask_mod, max_scores)
    arguments["sparsity"] = sparsity
    if scale is not None:
        scale = checked_value(NAME, "scale", "float", scale, None)
    if not (return_lse or return_aux is not None):
        return operator(query, key, value, scale=scale, **arguments)
    out, stats = operator(query, key, value, scale=scale, return_stats=True, **arguments)
    if return_aux is None:
        return out, stats["lse"]
    from torch.nn.attention.flex_attention import AuxOutput

    return out, AuxOutput(
        lse=stats["lse"] if return_aux.lse else None,
        max_scores=stats["max_scores"].detach() if max_scores else None,
    )


def operator_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Any] | None = None,
    block_mask: BlockMask | None = None,
    enable_gqa: bool = False,
    *,
    return_aux: AuxRequest | None = None,
    mask_mod: Callable[..., Any] | None = None,
) -> Operator:
    """The operator that a call of flex_attention with these arguments uses.

    Its ``explain()`` shows every level of the compilation, its ``source()`` the kernel.
    """
    query, key, value = _inputs(query, key, value, enable_gqa, block_mask)
    max_scores = return_aux is not None and bool(return_aux.max_scores)
    return _operator(query, key, score_mod, block_mask, mask_mod, max_scores)[0]


def _operator(
    query: Tensor,
    key: Tensor,
    score_mod: Callable[..., Any] | None,
    block_mask: BlockMask | None,
    mask_mod: Callable[..., Any] | None,
    max_scores: bool,
) -> tuple[Operator, dict[str, Any]]:
    """The operator of a call, and the numbers and tensors its bodies captured, by their names in the operator."""
    lists = None if block_mask is None else block_lists(block_mask, query, key)

    def traced(located: bool) -> tuple[Bodies, Expr]:
        listed = None if block_mask is None else block_mask.mask_mod
        bodies = trace_bodies(score_mod, listed, mask_mod, query.device, located=located)
        rec, mask = bodies.recorder, bodies.listed
        if lists is not None:
            mask = lists.condition(mask, rec.lifted, (query.shape[0], query.shape[1]), rec)
        return bodies, make("and", mask, bodies.mask)

    try:
        bodies, mask = traced(False)
    except errors.ReturnKindError:
        traced(True)  # raises it again, with the line of the value
        raise
    # Expressions are interned: the same formulas are the same objects, and name all parameters and tensors there are.
    formulas = bodies.score, mask, max_scores
    operator = _OPERATORS.get(formulas)
    if operator is None:
        bodies, mask = traced(True)  # once more, with the line of every expression
        program = program_of(bodies, mask, max_scores=max_scores)
        operator = _OPERATORS[formulas] = _build(program, bodies)
    rec, declared = bodies.recorder, operator.variant
    arguments: dict[str, Any] = {name: rec.lifted[name] for name in declared._parameters}
    arguments |= {name: rec.captured[name] for name in declared._tensors}
    return operator, arguments


class _Bodies(Variant):
    """What an operator made of bodies has for a variant: its numbers and tensors, without the formulas."""

    def __reduce__(self) -> Any:
        raise TypeError(
            "an operator of flex_attention cannot be copied or pickled: call it with the same functions"
        )


def _build(program: Program, bodies: Bodies) -> Operator:
    """The operator of a program: a variant whose parameters and tensors are what the bodies captured."""
    words = (re.sub(r"\W", "", name) for name in bodies.names)
    name = "_".join(("flex", *filter(None, words)))[:_LONGEST_NAME]
    cls: type[Variant] = type(name, (_Bodies,), {})
    rec = bodies.recorder
    cls._parameters = {p.name: p.kind for p in program.params}
    cls._tensors = {
        t.name: Declared(*t.axes, dtype=rec.captured[t.name].dtype) for t in program.tensors
    }
    numbers = {p.name: rec.lifted[p.name] for p in program.params}
    variant = cls(**numbers)
    tensors = dict(cls._tensors)
    named = replace(program, name=name)
    origin = "attncompiler.flex_attention with these functions"
    trace = Trace(named, numbers, tensors, variant, None, {}, {}, bodies.definition(), origin)
    return Operator(compile_levels(trace))


def _inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    enable_gqa: bool,
    block_mask: BlockMask | BlockSparse | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs as operators take them: batches of keys that a mask serves are expanded, last axes made contiguous."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor) or x.dim() != 4:
            found = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise errors.ShapeError(
                name=name,
                detail=f"expected a tensor of four axes [batch, heads, length, head_dim], got {found}",
                fix="pass one",
            )
    heads, groups = query.shape[1], key.shape[1]
    if heads != groups and not enable_gqa:
        raise errors.ShapeError(
            name="query",
            detail=f"it has {heads} heads, key has {groups}",
            fix="pass enable_gqa=True to let heads of queries share those of keys",
        )
    batch = query.shape[0]
    if block_mask is not None and key.shape[0] == value.shape[0] == 1 and batch > 1:
        key, value = key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)
    return _readable(query), _readable(key), _readable(value)


def _readable(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _check_options(options: Mapping[str, Any] | None) -> None:
    """Refuse options of torch's GPU kernels that mean something there and nothing here.

    Accepted are the defaults of options that choose a kernel or its arithmetic, and the two promises about inputs:
    kernels here are right without them.
    """
    for name, value in (options or {}).items():
        if value not in _HARMLESS.get(name, ()):
            raise errors.ArgumentsError(
                name="kernel_options",
                detail=f"{name}={value!r} tunes GPU kernels of torch and has no meaning here",
                fix="leave it out: tiles are chosen by the compiler",
            )


_HARMLESS: dict[str, tuple[Any, ...]] = {
    "BACKEND": ("AUTO",),
    "PRESCALE_QK": (False,),
    "FORCE_USE_FLEX_ATTENTION": (False,),
    "ROWS_GUARANTEED_SAFE": (False, True),
    "BLOCKS_ARE_CONTIGUOUS": (False, True),
}
