"""The operator users call: sorts a call's arguments, runs ``prepare``, and launches or hands over to torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from attncompiler.backends.cpp import Specialization
from attncompiler.block_sparse import BlockSparse
from attncompiler.ir.program import TensorDecl
from attncompiler.preparation import run_prepare, wanted_by
from attncompiler.runtime.arguments import check_limits, number, refuse_positional, split_arguments
from attncompiler.runtime.arrangement import Arrangement
from attncompiler.runtime.block_table import (
    Form,
    Heads,
    check_sparsity,
    form_of,
    restricted,
    table_of,
)
from attncompiler.runtime.call_checks import (
    ELEMENT_TYPES,
    check_inputs,
)
from attncompiler.runtime.dispatch import Dispatch, autocast
from attncompiler.runtime.engines import CHOICE, Engines
from attncompiler.runtime.errors import DtypeError
from attncompiler.runtime.kernels import BuiltKernel, Kernels, apart
from attncompiler.runtime.module import AttentionModule
from attncompiler.runtime.planning import map_tiles
from attncompiler.runtime.tensor_types import usual_types
from attncompiler.tile_map import TileMap
from attncompiler.user_code import shows_call

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation
    from attncompiler.tile_map import TileMap
    from attncompiler.tuning.tuned import Tuned

__all__ = ["BuiltKernel", "Operator"]


class Operator:
    """A compiled attention variant; call it like a function.

    ``op(q, k, v, *, q_start=0, scale=None, return_stats=False, sparsity=None, **arguments) -> out``

    q is ``[B, H, M, D]``, k ``[B, G, N, D]``, v ``[B, G, N, Dv]`` with H a multiple of G; the result is
    ``[B, H, M, Dv]`` in their dtype (float32, bfloat16, float16 or float64); the triton backend also takes q, k and v
    of one 8-bit float and gives bfloat16, without gradients. Any strides with a contiguous last axis are read in
    place. Query positions start at ``q_start``. ``scale`` overrides the variant's. ``arguments`` are the declared
    tensors, by name, and new values of parameters. With ``return_stats`` the result is
    ``(out, stats)``, where ``stats`` holds each kept row statistic as ``[B, H, M]`` in float32 (float64 for
    float64 inputs). A row without an allowed key gives 0 before the ``output`` slot. ``sparsity``, a BlockSparse,
    allows pairs of listed blocks only.

    The result and the statistics are differentiable with respect to q, k, v and every floating tensor. Under
    autocast q, k and v are cast as for ``scaled_dot_product_attention``; declared tensors keep their type.
    """

    def __init__(
        self,
        compilation: Compilation,
        backend: str = "auto",
        *,
        deterministic: bool = True,
        tune: float | None = None,
    ) -> None:
        self.compilation = compilation
        self.variant = compilation.trace.variant
        self.name = compilation.plan.program.name
        self._kernels = Kernels(compilation)
        self._engines = Engines(self._kernels, backend, deterministic=deterministic, tune=tune)
        self._run = Dispatch(self._engines)
        self._registered = self._run.registered
        self._prepares = getattr(self.variant, "prepare", None) is not None
        self._prepare_wants = wanted_by(self.variant.prepare) if self._prepares else ()  # type: ignore[attr-defined]
        # A call reads these often; under torch.compile each is a guard less than a look into the compilation.
        kernel, trace = self._kernels.signature, compilation.trace
        self._reads = tuple(t.name for t in kernel.tensors)
        self._scalars = tuple(p.name for p in kernel.params)
        self._kept = self._kernels.signature.kept
        self._params = dict(trace.params)
        self._tensors = dict(trace.captured)
        self._numbers = tuple(self._params[n] for n in self._scalars)
        self._captured = tuple(self._tensors.get(n) for n in self._reads)
        self._arrangement = (
            Arrangement(self.name, trace.variant.layout, trace.orders, self._reads)
            if trace.orders
            else None
        )
        self._limits = trace.limits
        check_limits(self.variant, self._limits, self._params)
        self._default_scale = self._params.get("scale", trace.scale)
        self._number = next(_NUMBERS)
        self._listed = _Listed()
        self._table = ""  # of block lists: the tensor's name
        _OPERATORS[self._number] = self

    def __repr__(self) -> str:
        return f"<attncompiler operator {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the variant; loaded kernels belong to a process, which finds them in the cache again."""
        from attncompiler.compiler import compile as compile_variant

        engines = self._engines
        tune = False if engines.tune is None else engines.tune
        again = partial(compile_variant, deterministic=engines.deterministic, tune=tune)
        return again, (self.variant, engines.backend)

    @shows_call
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *more: object,
        q_start: int = 0,
        scale: float | None = None,
        return_stats: bool = False,
        sparsity: BlockSparse | None = None,
        **arguments: Any,
    ) -> Any:
        """See the class."""
        if more:
            refuse_positional(self.variant, len(more))
        if type(q_start) is not int:
            q_start = number(self.name, "q_start", "int", q_start)
        if scale is not None and type(scale) is not float:
            scale = number(self.name, "scale", "float", scale)
        numbers: Sequence[float] = self._numbers
        captured: Sequence[Any] = self._captured
        if arguments or self._prepares:
            params, tensors = split_arguments(self.variant, arguments, self._params, self._tensors)
            if self._limits:
                check_limits(self.variant, self._limits, params)
            if self._prepares:
                q, k, v, tensors = run_prepare(
                    self.variant,
                    q,
                    k,
                    v,
                    tensors,
                    params=params,
                    q_start=q_start,
                    wants=self._prepare_wants,
                )
            numbers = [params[n] for n in self._scalars]
            captured = [tensors.get(n) for n in self._reads]
            if scale is None:
                scale = params.get("scale", self._default_scale)
        elif scale is None:
            scale = self._default_scale
        if self._arrangement is not None:
            q, k, v, captured = self._arrangement.inputs(q, k, v, captured, q_start)
        if (
            isinstance(q, Tensor)
            and q.device.type in CHOICE
            and torch.is_autocast_enabled(q.device.type)
        ):
            q, k, v = autocast(q), autocast(k), autocast(v)
        run = self
        if sparsity is not None:
            check_sparsity(sparsity)
            if not torch.compiler.is_compiling():  # there, errors must come from the ops
                check_inputs(q, k, v, q_start)
            table, form = table_of(sparsity, q, k), form_of(sparsity, q, k)
            name = _compile_listed(self._number, *form.block, form.batch, form.heads)
            run = getattr(self._listed, name)
            given = dict(zip(self._reads, captured, strict=True)) | {run._table: table}
            captured = [given.get(n) for n in run._reads]
            known = dict(zip(self._scalars, numbers, strict=True))
            numbers = [known[n] for n in run._scalars]
        out, kept = run._run(q, k, v, captured, q_start, scale, numbers, return_stats)
        if self._arrangement is not None:
            out, kept = self._arrangement.results(out, kept if return_stats else None)
        if not return_stats:
            return out
        rows = cast(Tensor, kept)
        return out, {name: rows[i] for i, name in enumerate(self._kept)}

    def module(self, **initial: Any) -> AttentionModule:
        """An ``nn.Module`` with this operator's call, which holds the declared tensors given here.

        A floating tensor becomes an ``nn.Parameter`` (a Parameter or ``nn.Buffer`` stays what it is), any other a
        buffer; numbers fix parameters of the variant. What is not given stays an argument of the call.
        """
        return AttentionModule(self, initial)

    def tune(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        backward: bool = False,
        seconds: float = 30.0,
        again: bool = False,
        progress: Callable[[str, Any], None] | None = None,
        **arguments: Any,
    ) -> list[Tuned]:
        """Look for the fastest schedule for calls like this one, and keep it in the user's cache.

        ``backward`` tunes the kernel of the gradients of q, k, v and of tensors that require them too. A search lasts
        ``seconds`` for a kernel, or less where nothing better turns up; it measures on the tensors that are given:
        their sizes, to a factor of 2, and the mask say which calls the result is for. What is known already is not
        measured ``again`` unless asked. ``progress(kind, step)`` hears of every step. ``arguments`` are those of a
        call. Returns what was found, one entry a kernel. Raises what a call raises, and CacheError where results cannot
        be kept.
        """
        from attncompiler.tuning.tune import tune_operator

        return tune_operator(
            self,
            (q, k, v),
            arguments,
            backward=backward,
            seconds=seconds,
            again=again,
            progress=progress,
        )

    def build(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        head_dim: int = 64,
        value_dim: int | None = None,
        tensor_dtypes: Mapping[str, torch.dtype] | None = None,
        backward: bool = False,
    ) -> BuiltKernel:
        """Build the kernel for one dtype and head dimension now, if the cache does not hold it.

        ``value_dim`` is ``head_dim`` unless given. ``tensor_dtypes`` names the dtypes of captured tensors that are
        not the usual ones (the dtype of the declaration, float32, int64, bool). With ``backward`` it is the kernel
        of the gradients of q, k, v and all floating tensors.
        """
        dims = head_dim, head_dim if value_dim is None else value_dim
        if backward:
            return self._kernels.build_backward(*self._backward(dtype, dims, tensor_dtypes or {}))
        return self._kernels.build(self._specialization(dtype, dims, tensor_dtypes or {}))

    def source(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        head_dim: int = 64,
        value_dim: int | None = None,
        tensor_dtypes: Mapping[str, torch.dtype] | None = None,
        backward: bool = False,
    ) -> str:
        """The C++ source of a kernel; the arguments are those of ``build``."""
        dims = head_dim, head_dim if value_dim is None else value_dim
        if backward:
            return self._kernels.backward_source(*self._backward(dtype, dims, tensor_dtypes or {}))
        return self._kernels.source(self._specialization(dtype, dims, tensor_dtypes or {}))

    def explain(
        self,
        tile_map: TileMap | None = None,
        tile: tuple[int, int] | None = None,
        *,
        batch: int = 0,
        head: int = 0,
    ) -> str:
        """Every level of the compilation as text: programs, the derived plan with its reasons, the loops.

        With ``tile_map``, a map of this variant's mask, the last chapter shows one batch and head of it in tiles of
        ``tile`` (the map's own unless given), and what every shape made of the map's tiles would gain.
        """
        from attncompiler.explanation import explain
        from attncompiler.tile_report import chapter

        lines = () if tile_map is None else chapter(tile_map, tile, batch=batch, head=head)
        return explain(self.compilation, self._engines.explain(), lines)

    @shows_call
    def tile_map(
        self,
        lengths: int | tuple[int, int],
        tile: int | tuple[int, int] = 64,
        *,
        batch: int = 1,
        heads: int = 1,
        groups: int | None = None,
        q_start: int = 0,
        **arguments: Any,
    ) -> TileMap:
        """Which tiles of the mask are empty, partly allowed and full; exact, and in time and memory O(tiles).

        ``lengths`` are M and N, ``tile`` the queries and keys of a tile (one number: both). ``batch`` and ``heads`` are
        those of the tensors that the mask reads, ``groups`` is G, ``heads`` unless given. With a layout, tiles are made
        of tokens in its order. ``arguments`` are the tensors that the mask reads and new values of parameters, as at a
        call; ``prepare`` does not run. All errors of a call that such arguments can have.
        """
        params, tensors = split_arguments(self.variant, arguments, self._params, self._tensors)
        check_limits(self.variant, self._limits, params)
        return map_tiles(
            self._kernels,
            (params, tensors),
            (lengths, lengths) if isinstance(lengths, int) else lengths,
            (tile, tile) if isinstance(tile, int) else tile,
            (batch, heads, heads if groups is None else groups),
            q_start,
        )

    # -- inside ------------------------------------------------------------------------------------------------

    def _backward(
        self,
        dtype: torch.dtype,
        dims: tuple[int, int],
        tensor_dtypes: Mapping[str, torch.dtype],
    ) -> tuple[Specialization, frozenset[str]]:
        wanted = self._kernels.learns
        read = self._kernels.loops(wanted).tensors
        return self._specialization(dtype, dims, tensor_dtypes, read), wanted

    def _specialization(
        self,
        dtype: torch.dtype,
        dims: tuple[int, int],
        tensor_dtypes: Mapping[str, torch.dtype],
        read: Sequence[TensorDecl] | None = None,
    ) -> Specialization:
        if dtype not in ELEMENT_TYPES:
            raise DtypeError(
                name="dtype",
                detail=f"elements of type {dtype} are not supported",
                fix="choose float32, bfloat16, float16 or float64",
            )
        read = self._kernels.kernel.tensors if read is None else read
        types = usual_types(read, self.compilation.trace.tensors, tensor_dtypes)
        return Specialization(ELEMENT_TYPES[dtype], *dims, types)


_NUMBERS = count()
_OPERATORS: WeakValueDictionary[int, Operator] = WeakValueDictionary()


class _Listed:
    """The operators that run calls with block lists, an attribute each: a trace reads those one by one."""


def _compile_listed(number: int, rows: int, columns: int, batch: bool, heads: Heads) -> str:
    """The attribute of ``_listed`` that runs lists of one form, compiled when it is not there yet."""
    from attncompiler.compiler import compile_levels

    operator = _OPERATORS[number]
    name = f"blocks_{rows}_{columns}_{'b' if batch else ''}{heads}"
    if not hasattr(operator._listed, name):
        trace, table = restricted(operator.compilation.trace, Form((rows, columns), batch, heads))
        engines = operator._engines
        levels = apart(lambda: compile_levels(trace))
        options: Any = {"deterministic": engines.deterministic, "tune": engines.tune}
        made = Operator(levels, engines.backend, **options)
        made._table = table
        setattr(operator._listed, name, made)
    return name


# What torch.compiler.assume_constant_result does, without loading torch's compiler: a trace calls it instead of
# looking into it.
_compile_listed._dynamo_marked_constant = True  # type: ignore[attr-defined]
