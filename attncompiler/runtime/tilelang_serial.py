"""Runs a TileLang kernel on one thread of the CPU: TileLang lowers it to C, our compiler builds it, ctypes calls it.

For checking what a kernel computes where there is no GPU: indices, masks and algebra are those of the GPU's kernel, the
layouts of its registers and shared memory are not. float32 only, as TileLang's C is.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from attncompiler.runtime.cache import content_key, entry
from attncompiler.runtime.toolchain import Toolchain, find_toolchain

_TYPES: dict[str, Any] = {
    "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float, "bool": ctypes.c_bool,
}  # fmt: skip

# A function of the devices' libraries that C lacks: as TileLang declares it, and what it is.
_LEADING_ZEROS = (
    "int32_t __clzll(int64_t);",
    "inline int32_t __clzll(int64_t x) { return __builtin_clzll(x); }",
)


@dataclass(frozen=True, slots=True)
class SerialKernel:
    """A built kernel: its C function, and of each of its arguments the type and what it is."""

    function: Any
    arguments: tuple[tuple[str, str], ...]

    def __call__(self, values: Mapping[str, Any]) -> None:
        """Run with arguments by name."""
        given = []
        for kind, what in self.arguments:
            name, _, part = what.partition(".")
            x = values[name]
            if part:
                side, axis = part.split("-")
                number = x.shape[int(axis)] if side == "shape" else x.stride(int(axis))
                given.append(_TYPES[kind](number))
            elif isinstance(x, Tensor):
                given.append(ctypes.c_void_p(x.data_ptr()))
            else:
                given.append(_TYPES[kind](x))
        status = self.function(*given)
        if status != 0:
            raise RuntimeError(f"a TileLang kernel ended with status {status}")


def build(name: str, make: Any, order: Sequence[str], source: str) -> SerialKernel:
    """The kernel that ``make()`` traces, from the cache where it was built before; ``source`` tells kernels apart.

    ``order`` names its arguments.
    """
    import tilelang

    toolchain = find_toolchain()
    key = content_key(source, tilelang.__version__, toolchain.key)
    folder, _ = entry(
        f"{name}_serial", key, lambda folder: _fill(folder, name, make, order, toolchain)
    )
    arguments = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    library = ctypes.CDLL(str(folder / "kernel.so"))
    return SerialKernel(library.attention_kernel, tuple((kind, what) for kind, what in arguments))


def _meanings(made: Any, order: Sequence[str]) -> dict[str, str]:
    """What the variables of a traced kernel are, by the names they got: arguments, extents and strides."""
    found: dict[str, str] = {}
    for param, mine in zip(made.params, order, strict=True):
        buffer = made.buffer_map.get(param)
        if buffer is None:
            found[param.name] = mine
            continue
        found[buffer.data.name] = mine
        for side in ("shape", "strides"):
            for axis, extent in enumerate(getattr(buffer, side)):
                if hasattr(extent, "name"):
                    found.setdefault(extent.name, f"{mine}.{side}-{axis}")
    return found


def _fill(folder: Path, name: str, make: Any, order: Sequence[str], toolchain: Toolchain) -> None:
    import tilelang
    from tilelang import tvm

    with tvm.target.Target("c"):
        made = make()
        lowered = tilelang.lower(made, target="c", target_host="c")
    source = folder / "kernel.cpp"
    source.write_text(lowered.kernel_source.replace(*_LEADING_ZEROS), encoding="utf-8")
    found = re.search(r"int32_t attention_kernel\(([^)]*)\);", lowered.kernel_source)
    assert found is not None, "TileLang's C declares its function first"
    meanings = _meanings(made, order)
    declared = [a.replace("const ", "").rsplit(" ", 1) for a in found[1].split(", ")]
    arguments = [(kind, meanings[n]) for kind, n in declared]
    (folder / "arguments.json").write_text(json.dumps(arguments), encoding="utf-8")
    templates = Path(tilelang.__file__).parent / "src"
    # Scalar code of which every line is there to be checked: little is gained by more than the first level.
    kept = (f for f in toolchain.flags if not f.startswith(("-fvisibility", "-O")))
    flags = (*kept, "-O1", "-w", f"-I{templates}")
    Toolchain(toolchain.command, toolchain.identity, flags).build(
        name, source, folder / "kernel.so"
    )
