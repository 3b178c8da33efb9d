"""What a launch needs to know of kernels, as plain data: names and kinds of arguments, and who may add where.

Nothing here knows how kernels came about. A compilation describes its kernels in these terms
(``runtime/description.py``), a package made by ``attncompiler build`` reads them from its manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from attncompiler.ir.declared import ParamDecl, TensorDecl

if TYPE_CHECKING:
    from attncompiler.runtime.library import BackwardLibrary, Library
    from attncompiler.runtime.situation import Situation
    from attncompiler.runtime.tile_tables import TileTables


@dataclass(frozen=True, slots=True)
class Signature:
    """What the argument block of a forward holds after the fixed fields, in order.

    ``kept`` names the row statistics the kernel can hand to the caller, ``stats`` those it can save for a backward,
    ``planned`` says whether the states of tiles follow.
    """

    params: tuple[ParamDecl, ...]
    tensors: tuple[TensorDecl, ...]
    kept: tuple[str, ...]
    stats: tuple[str, ...]
    planned: bool = False


@dataclass(frozen=True, slots=True)
class Separation:
    """Along which ranges of tasks the gradient of a tensor is separate: no two tasks add to one element.

    ``rows_of_head`` says so of the rows of one head, ``rows`` of all rows of a group of heads.
    """

    batches: bool
    groups: bool
    rows_of_head: bool
    rows: bool


@dataclass(frozen=True, slots=True)
class TensorGrad:
    """A captured tensor that receives a gradient.

    ``own`` says that its extents are passed with it because the kernel does not read the tensor, ``in_double`` that
    the gradient is added up in double precision.
    """

    name: str
    rank: int
    own: bool
    separation: Separation
    in_double: bool


@dataclass(frozen=True, slots=True)
class BackwardSignature:
    """What the argument block of a backward holds after the fixed fields, in order.

    ``params`` and ``tensors`` are those the backward reads; ``saved`` names statistics of the forward, ``kept`` kept
    statistics whose gradients it takes; ``reads_value`` says whether it reads the output row before the epilogue,
    ``planned`` whether the states of tiles follow.
    """

    params: tuple[ParamDecl, ...]
    tensors: tuple[TensorDecl, ...]
    saved: tuple[str, ...]
    kept: tuple[str, ...]
    grads: tuple[TensorGrad, ...]
    reads_value: bool
    planned: bool = False


@dataclass(frozen=True, slots=True)
class PlanSignature:
    """What a planning kernel reads, and whether batches and heads differ."""

    params: tuple[ParamDecl, ...]
    tensors: tuple[TensorDecl, ...]
    by_batch: bool
    by_head: bool


class Described(Protocol):
    """What is known of one variant's kernels whatever their backend; registered operators need no more."""

    name: str

    @property
    def identity(self) -> str:
        """What tells programs apart."""

    @property
    def signature(self) -> Signature:
        """What the forward reads and gives."""

    @property
    def dot_factor(self) -> float:
        """Multiplies the scale of a call."""

    @property
    def saved(self) -> tuple[str, ...]:
        """The statistics of the forward that the backward reads."""

    @property
    def learns(self) -> frozenset[str]:
        """The captured tensors whose gradient is not 0 everywhere."""

    @property
    def reads_value(self) -> bool:
        """Whether the backward reads the output row before the epilogue."""

    def saves_value(self, dtype: torch.dtype) -> bool:
        """Whether the backward of a type reads an output row before the epilogue that is not the output itself."""


class KernelSet(Described, Protocol):
    """The C++ kernels of one variant, as launches use them."""

    def forward(
        self, dims: tuple[str, int, int], types: tuple[str, ...], situation: Situation
    ) -> Library:
        """The loaded forward kernel for an element type, head_dim and value_dim, cut for calls like this one.

        ``types`` are those of the captured tensors, in order.
        """

    def backward(
        self,
        tensors: Mapping[str, str],
        dims: tuple[str, int, int],
        wanted: frozenset[str],
        situation: Situation,
    ) -> tuple[BackwardSignature, BackwardLibrary]:
        """The loaded backward that gives gradients to the tensors in ``wanted``, at least, cut for calls like this one.

        ``tensors`` gives the types of captured tensors by name.
        """

    def tables(self, dtype: str, types: Mapping[str, str]) -> TileTables | None:
        """What finds the states of tiles for a call; None for a mask that kernels decide by themselves.

        ``dtype`` is the element type of the inputs, ``types`` those of captured tensors by name.
        """


def output_type(dtype: torch.dtype) -> torch.dtype:
    """The type of the output for inputs of ``dtype``: theirs, of 8-bit floats bfloat16."""
    return torch.bfloat16 if dtype.itemsize == 1 else dtype


def real_of(dtype: torch.dtype) -> torch.dtype:
    """The type in which a kernel for inputs of ``dtype`` computes and returns row statistics."""
    return torch.float64 if dtype == torch.float64 else torch.float32
