"""The generated GPU kernels of a few variants, as what the offline compiler takes: shared by tests of resources."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from attncompiler.artifact.specialize import specializations
from attncompiler.backends.gpu_targets import EIGHT_BITS, Target
from attncompiler.backends.triton_configs import Config, Kind
from attncompiler.compiler import compile as compile_variant
from attncompiler.dsl import Variant, causal, sliding_window
from attncompiler.runtime.gpu_kernels import GpuKernel, GpuKernels, gpu_kernels
from attncompiler.runtime.kernels import Kernels
from attncompiler.runtime.offline import Result, compile_offline
from attncompiler.runtime.offline_records import Language
from attncompiler.variant_file import load_variant

EXAMPLES = Path(__file__).parents[2] / "examples"


class Full(Variant):
    pass


class Causal(Variant):
    def mask(self, at):
        return causal(at)


class Window(Variant):
    def mask(self, at):
        return causal(at) & sliding_window(at, 1024)


PLAIN = {"full": Full, "causal": Causal, "window": Window}


@cache
def _kernels(name: str) -> Kernels:
    variant = PLAIN[name]() if name in PLAIN else load_variant(EXAMPLES / f"{name}.py")
    return Kernels(compile_variant(variant).compilation)


@cache
def kernels_of(
    name: str, dtype: str, head_dim: int, value_dim: int, language: Language = "triton"
) -> GpuKernels:
    """The forward kernel of training and the two backward kernels of a variant; of 8-bit floats the forward alone."""
    kernels = _kernels(name)
    (wanted,) = specializations(kernels.compilation, [dtype], head_dim, value_dim)
    backward = dtype not in EIGHT_BITS
    return gpu_kernels(kernels, wanted.tensors, wanted.dims, backward=backward, language=language)


def kernel_of(
    name: str, kind: Kind, dtype: str, head_dim: int, value_dim: int, language: Language = "triton"
) -> GpuKernel:
    """One kernel of a variant."""
    found = kernels_of(name, dtype, head_dim, value_dim, language).kernels
    return next(k for k in found if k.kind == kind)


def compiled(
    kernel: GpuKernel, target: Target, which: slice = slice(0, 1)
) -> list[tuple[Config, Result]]:
    """Some of the configurations of a kernel, compiled."""
    configs = kernel.configs(target)[which]
    results = compile_offline([kernel.request(target, c) for c in configs], target, timeout_s=300)
    return list(zip(configs, results, strict=True))
