"""Where the Triton kernels of a variant come from, for its engine: a compilation prints them, a package has files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Protocol

from attncompiler.backends.gpu_targets import Target
from attncompiler.backends.tile_config import Config, Kind
from attncompiler.runtime.errors import MissingTritonError
from attncompiler.runtime.interpreting import is_interpreting
from attncompiler.runtime.triton_backward import BackwardSignature
from attncompiler.runtime.triton_launch import PlanSignature, Signature

# The element type of q, k and v, head_dim and value_dim.
Dims = tuple[str, int, int]


class TritonModules(Protocol):
    """The imported kernels of one variant; ``types`` are those of captured tensors by name.

    Every method may be called from several threads, and gives the same module for the same arguments.
    """

    @property
    def signature(self) -> Signature:
        """What the forward takes."""

    @property
    def no_eight_bits(self) -> str:
        """Why the forward takes no inputs of 8 bits, in words; empty where it does."""

    def forward(self, dims: Dims, types: Mapping[str, str]) -> ModuleType:
        """The forward kernel."""

    def backward(
        self, dims: Dims, types: Mapping[str, str], wanted: frozenset[str]
    ) -> tuple[BackwardSignature, ModuleType]:
        """The kernels that give gradients to the tensors in ``wanted``, at least, and what they take."""

    def plan(self, dims: Dims, types: Mapping[str, str]) -> tuple[PlanSignature, ModuleType]:
        """The kernel that lists tiles, and what it takes."""

    def configs(
        self, kind: Kind, target: Target, dims: Dims, wanted: frozenset[str] = frozenset()
    ) -> Sequence[Config]:
        """How a kernel may be cut on a target, the best guess first; ``wanted`` as for ``backward``."""


def ready_triton() -> None:
    """Import triton, and correct its interpreter where that runs kernels. Raises MissingTritonError."""
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise MissingTritonError() from error
    if is_interpreting():
        from attncompiler.runtime.triton_interpreter import repair

        repair()
