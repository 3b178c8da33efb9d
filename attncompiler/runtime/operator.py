"""The operator users call: checks a call, runs ``prepare``, builds the kernel it needs once, launches it."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attncompiler.backends.cpp import Specialization, render
from attncompiler.declarations import checked_value
from attncompiler.preparation import run_prepare
from attncompiler.runtime.arguments import split_arguments
from attncompiler.runtime.cache import content_key, entry
from attncompiler.runtime.call_checks import ELEMENT_TYPES, check_inputs, check_tensors
from attncompiler.runtime.errors import DtypeError
from attncompiler.runtime.library import Library, Signature
from attncompiler.runtime.toolchain import find_toolchain
from attncompiler.user_code import shows_call

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """A kernel on disk: its readable source, its library, and how long each stage took (seconds).

    ``cached`` says that the library was found in the cache: no compiler ran.
    """

    path_source: Path
    path_library: Path
    seconds: dict[str, float]
    cached: bool


class Operator:
    """A compiled attention variant; call it like a function.

    ``op(q, k, v, *, q_start=0, scale=None, return_stats=False, **arguments) -> out``

    q is ``[B, H, M, D]``, k ``[B, G, N, D]``, v ``[B, G, N, Dv]`` with H a multiple of G; the result is
    ``[B, H, M, Dv]`` in their dtype (float32, bfloat16, float16 or float64). Any strides with a contiguous last
    axis are read in place. Query positions start at ``q_start``. ``scale`` overrides the variant's. ``arguments``
    are the declared tensors, by name, and new values of parameters. With ``return_stats`` the result is
    ``(out, stats)``, where ``stats`` holds each kept row statistic as ``[B, H, M]`` in float32 (float64 for
    float64 inputs). A row without an allowed key gives 0 before the ``output`` slot.
    """

    def __init__(self, compilation: Compilation) -> None:
        self.compilation = compilation
        self.variant = compilation.trace.variant
        self.name = compilation.plan.program.name
        self._kernel = compilation.kernel
        self._kept = [name for name, _ in self._kernel.finish.kept]
        self._signature = Signature(
            tuple(p.kind for p in self._kernel.params),
            tuple(len(t.axes) for t in self._kernel.tensors),
            len(self._kept),
        )
        self._libraries: dict[Specialization, Library] = {}

    def __repr__(self) -> str:
        return f"<attncompiler operator {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the variant; loaded kernels belong to a process, which finds them in the cache again."""
        from attncompiler.compiler import compile as compile_variant

        return compile_variant, (self.variant, "cpp")

    @shows_call
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        q_start: int = 0,
        scale: float | None = None,
        return_stats: bool = False,
        **arguments: Any,
    ) -> Any:
        """See the class."""
        q_start = int(checked_value(self.name, "q_start", "int", q_start, None))
        if scale is not None:
            scale = checked_value(self.name, "scale", "float", scale, None)
        trace = self.compilation.trace
        params, tensors = split_arguments(self.variant, arguments, trace.params, trace.captured)
        if hasattr(self.variant, "prepare"):
            q, k, v, tensors = run_prepare(
                self.variant, q, k, v, tensors, params=params, q_start=q_start
            )
        check_inputs(q, k, v, q_start)
        batch, heads, queries, head_dim = q.shape
        groups, keys, value_dim = k.shape[1], k.shape[2], v.shape[3]
        declared = self._kernel.tensors
        types: tuple[str, ...] = ()
        captured: list[Tensor] = []
        if declared:
            sizes = {"B": batch, "H": heads, "G": groups, "M": queries, "N": keys, "Dv": value_dim}
            types = check_tensors(self.name, declared, tensors, sizes)
            captured = [_readable(tensors[t.name]) for t in declared]
        library = self._library(Specialization(ELEMENT_TYPES[q.dtype], head_dim, value_dim, types))
        out = q.new_empty((batch, heads, queries, value_dim))
        kept: list[Tensor | None] = [None] * len(self._kept)
        if return_stats:
            real = torch.float64 if q.dtype == torch.float64 else torch.float32
            kept = [q.new_empty((batch, heads, queries), dtype=real) for _ in self._kept]
        library(
            q,
            k,
            v,
            out,
            layout=library.layout(q, k, v, out, captured),
            q_start=q_start,
            scale=self._scale(scale, head_dim, params),
            params=[params[p.name] for p in self._kernel.params],
            tensors=captured,
            kept=kept,
        )
        return (out, dict(zip(self._kept, kept, strict=True))) if return_stats else out

    def build(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        head_dim: int = 64,
        value_dim: int | None = None,
        tensor_dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> BuiltKernel:
        """Build the kernel for one dtype and head dimension now, if the cache does not hold it.

        ``value_dim`` is ``head_dim`` unless given. ``tensor_dtypes`` names the dtypes of captured tensors that are
        not the usual ones (the dtype of the declaration, float32, int64, bool).
        """
        spec = self._specialization(dtype, head_dim, value_dim, tensor_dtypes or {})
        return self._build(spec)

    def source(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        head_dim: int = 64,
        value_dim: int | None = None,
        tensor_dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> str:
        """The C++ source of a kernel; the arguments are those of ``build``."""
        return self._render(self._specialization(dtype, head_dim, value_dim, tensor_dtypes or {}))

    def explain(self) -> str:
        """Every level of the compilation as text: programs, the derived plan with its reasons, the loops."""
        from attncompiler.explanation import explain

        return explain(self.compilation)

    # -- inside ------------------------------------------------------------------------------------------------

    def _scale(self, given: float | None, head_dim: int, params: Mapping[str, float]) -> float:
        if given is None:
            given = params.get("scale", self.compilation.trace.scale)
        base = 1 / math.sqrt(head_dim) if given is None else float(given)
        return base * self.compilation.plan.program.dot_factor

    def _library(self, spec: Specialization) -> Library:
        library = self._libraries.get(spec)
        if library is None:
            path = self._build(spec).path_library
            try:
                library = Library(path, self._signature)
            except OSError:  # somebody emptied the cache between the two lines
                library = Library(self._build(spec).path_library, self._signature)
            self._libraries[spec] = library
        return library

    def _specialization(
        self,
        dtype: torch.dtype,
        head_dim: int,
        value_dim: int | None,
        tensor_dtypes: Mapping[str, torch.dtype],
    ) -> Specialization:
        if dtype not in ELEMENT_TYPES:
            raise DtypeError(
                name="dtype",
                detail=f"elements of type {dtype} are not supported",
                fix="choose float32, bfloat16, float16 or float64",
            )
        types = []
        for decl in self._kernel.tensors:
            declared = self.compilation.trace.tensors[decl.name].dtype
            usual: Any = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}[decl.kind]
            chosen = declared if isinstance(declared, torch.dtype) else usual
            types.append(str(tensor_dtypes.get(decl.name, chosen)).removeprefix("torch."))
        dims = head_dim, head_dim if value_dim is None else value_dim
        return Specialization(ELEMENT_TYPES[dtype], *dims, tuple(types))

    def _render(self, spec: Specialization) -> str:
        cls = type(self.variant)
        try:
            definition = inspect.getsource(cls)
        except (OSError, TypeError):  # a class made at a prompt has no file
            definition = f"class {cls.__name__} (source not available)"
        options = f"--dtype {spec.dtype} --head-dim {spec.head_dim} --value-dim {spec.value_dim}"
        title = f"{self.name}: fused attention forward, {spec.dtype}, head_dim {spec.head_dim}"
        return render(
            self._kernel,
            spec,
            title=f"{title}, value_dim {spec.value_dim}, generated by attncompiler.",
            definition=definition,
            regenerate=f"attncompiler build {_file_of(cls)} --name {cls.__name__} {options}",
        )

    def _build(self, spec: Specialization) -> BuiltKernel:
        clock = time.perf_counter()
        source = self._render(spec)
        printed = time.perf_counter() - clock
        toolchain = find_toolchain()
        stem = f"{self.name.lower()}_{spec.dtype}_d{spec.head_dim}"

        def fill(folder: Path) -> None:
            (folder / "kernel.cpp").write_text(source)
            toolchain.build(self.name, folder / "kernel.cpp", folder / "kernel.so")

        clock = time.perf_counter()
        folder, cached = entry(stem, content_key(source, toolchain.key), fill)
        seconds = {"print": printed, "compile": time.perf_counter() - clock}
        return BuiltKernel(folder / "kernel.cpp", folder / "kernel.so", seconds, cached)


def _readable(x: Tensor) -> Tensor:
    """A tensor that clamped indices can always read: an empty one becomes a single zero seen at every index."""
    return x if x.numel() else x.new_zeros(1).as_strided(x.shape, (0,) * x.dim())


def _file_of(cls: type) -> str:
    try:
        return Path(inspect.getsourcefile(cls) or "variant.py").name
    except (OSError, TypeError):  # a class made at a prompt
        return "variant.py"
