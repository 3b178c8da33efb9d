"""Turns a compiled variant into all files of its package: kernels, definition, run-time modules, manifest."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution, version
from types import MappingProxyType
from typing import Any

import torch

from attncompiler.artifact.backend import Backend, PackagedKernel
from attncompiler.artifact.definition import SUPPORT, Definition, rendered, support_files
from attncompiler.artifact.specialize import Wanted
from attncompiler.check import reads_keys_at_queries
from attncompiler.frontend import definition_of
from attncompiler.variant import Variant

# Changes when the run-time modules of an older package would misread a manifest.
FORMAT = 1
# What every package needs; the rest follows from their imports.
MODULES = (
    "runtime.packaged",
    "runtime.call_location",
    "runtime.held",
    "runtime.sampled",
    "runtime.selftest",
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a package is made for: its name, the call's dimensions, the dtypes, and the command that makes it."""

    package: str
    backends: tuple[Backend, ...]
    dtypes: tuple[str, ...]
    head_dim: int
    value_dim: int
    backward: bool
    file: str
    command: str


def package_files(
    definition: Definition,
    request: Request,
    wanted: Sequence[Wanted],
    kernels: Sequence[PackagedKernel],
    binaries: Mapping[str, bytes] = MappingProxyType({}),
) -> dict[str, str | bytes]:
    """What each file holds by its path in the package; ``binaries`` are files that come along."""
    context = definition.context() | {
        "package": request.package,
        "summary": _summary(definition.variant),
        "docstring": inspect.getdoc(type(definition.variant)) or "",
        "needs": _needs(request),
        "backends": [backend.name for backend in request.backends],
        "has_binaries": bool(binaries),
        "kept": [name for name, _ in definition.trace.program.kept],
        "dtypes": request.dtypes,
        "head_dim": request.head_dim,
        "value_dim": request.value_dim,
        "backward": request.backward,
        "command": request.command,
        "version": version("attncompiler"),
    }
    files: dict[str, str | bytes] = {
        "__init__.py": rendered("init.py.j2", context),
        "selftest.py": rendered("selftest.py.j2", context),
        "README.md": rendered("readme.md.j2", context),
        "py.typed": "",
        **{kernel.path: kernel.source for kernel in kernels},
        **{path: source for kernel in kernels for path, source in kernel.more},
        **definition.files(),
        **binaries,
        **_run_time(request),
    }
    if any(kernel.path.endswith(".py") for kernel in kernels):
        files["kernels/__init__.py"] = '"""The kernels, as modules of the package."""\n'
    licence = distribution("attncompiler").read_text("licenses/LICENSE")
    if licence is not None:  # the terms under which run-time files are passed on
        files[f"{SUPPORT}/LICENSE"] = licence
    sums = {path: _sha256(text) for path, text in sorted(files.items())}
    manifest = _manifest(definition, request, wanted, kernels) | {"files": sums}
    files["manifest.json"] = json.dumps(manifest, indent=1) + "\n"
    return files


def _manifest(
    definition: Definition,
    request: Request,
    wanted: Sequence[Wanted],
    kernels: Sequence[PackagedKernel],
) -> dict[str, Any]:
    """What ``runtime/packaged.py``, ``manifest.py`` and ``selftest.py`` read, and what the package was made of."""
    trace = definition.trace
    cls = type(definition.variant)
    layout = definition.layout
    return {
        "format": FORMAT,
        "variant": definition.name,
        "definition_sha256": _sha256(definition_of(trace)),
        "file": request.file,
        "command": request.command,
        "attncompiler": version("attncompiler"),
        "torch": torch.__version__,
        "backends": {backend.name: backend.device for backend in request.backends},
        "dtypes": list(request.dtypes),
        "head_dim": request.head_dim,
        "value_dim": request.value_dim,
        "call": {
            "scale": definition.scale,
            "values": trace.params,
            "kinds": cls._parameters,
            "tensors": {name: list(tensor.axes) for name, tensor in cls._tensors.items()},
            "limits": trace.limits,
        },
        "sample": _sample(definition.variant),
        "tokens": 0 if layout is None else layout.size,
        "reads_keys_at_queries": reads_keys_at_queries(definition.compilation.steps[0][1]),
        "program": {
            name: x
            for backend in request.backends
            for name, x in backend.program(
                definition.compilation, wanted, backward=request.backward
            ).items()
        },
        "kernels": [kernel.entry for kernel in kernels],
    }


def _run_time(request: Request) -> dict[str, str]:
    """The run-time modules: what every package needs, and what its backends need."""
    files = support_files(MODULES)
    for backend in request.backends:
        files |= support_files(backend.modules, backend.libraries)
    return files


def _needs(request: Request) -> str:
    """What a package needs, in words."""
    names = {backend.device: backend.needs for backend in request.backends}
    if len(names) == 1:
        return f"torch and {next(iter(names.values()))}"
    where = {"cpu": "on CPUs", "cuda": "on GPUs"}
    return "torch, " + " and ".join(f"{need} {where[device]}" for device, need in names.items())


def _summary(variant: Variant) -> str:
    """One sentence: the first line of the file's docstring, or of the class's."""
    module = inspect.getmodule(type(variant))
    text = (module.__doc__ if module else None) or type(variant).__doc__ or "attention"
    line = text.strip().splitlines()[0].rstrip()
    return line if line.endswith(".") else f"{line}."


def _sample(variant: Variant) -> dict[str, Any]:
    """What the self test draws tensors from."""
    return {
        name: {
            "axes": list(tensor.axes),
            "kind": tensor.kind,
            "dtype": _name(tensor.dtype),
            "low": tensor.low,
            "high": tensor.high,
            "extent": tensor.extent,
        }
        for name, tensor in type(variant)._tensors.items()
    }


def _name(dtype: object) -> str | None:
    """A torch dtype in a declaration; None for a kind."""
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else None


def _sha256(content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()
