"""TileLang's own host code of a kernel, to be compiled against the stand-in for the CUDA driver, as a test wants it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attncompiler.backends.gpu_targets import Target
from attncompiler.runtime.offline_worker import generated_module
from attncompiler.runtime.tilelang_launch import pass_configs, ready_tilelang
from attncompiler.runtime.tilelang_offline import tilelang_arch
from attncompiler.runtime.toolchain import find_toolchain

STAND_IN = Path(__file__).with_name("launch_stand_in.cpp")


class HostCode:
    """A kernel, lowered, and what TileLang would launch it with; ``meanings`` are the arguments of that, as data."""

    def __init__(
        self, source: Path, kind: str, constants: Mapping[str, Any], target: Target
    ) -> None:
        ready_tilelang()
        import tilelang
        from tilelang import tvm
        from tilelang.jit.adapter.wrapper import TLCUDASourceWrapper

        module = generated_module(source)
        self.order: list[str] = getattr(module, f"{kind.upper()}_ARGUMENTS")
        self.shaped: tuple[str, ...] = getattr(module, f"{kind.upper()}_SHAPED")
        self.made = getattr(module, kind)(**constants)
        cuda = tvm.target.Target({"kind": "cuda", "arch": tilelang_arch(target)})
        tma = target.name != "sm_90" or bool(constants["REGISTERS"])
        options = {
            key.value: value for key, value in pass_configs(tma=tma, apart=kind == "groups").items()
        }
        with tvm.transform.PassContext(opt_level=3, config=options), cuda:
            self.lowered = tilelang.lower(self.made, target=cuda)
        made, text = tvm.IRModule.from_expr(self.made), self.lowered.kernel_source
        modules = self.lowered.device_mod, self.lowered.host_mod
        wrapper = TLCUDASourceWrapper(made, text, cuda, *modules)
        assert wrapper.lib_code is not None
        self.host: str = wrapper.lib_code[wrapper.lib_code.index("#ifdef _WIN32") :]
        symbols = [name for name, _ in wrapper.get_dynamic_symbolic_set(wrapper.prim_func)]
        self.meanings = self._meanings(symbols)

    def _meanings(self, symbols: list[str]) -> list[tuple[str, str, str, int]]:
        """Type, what it is ("address", "number", "size" or "stride"), argument and axis: arguments, then symbols."""
        given: list[tuple[str, str, str, int]] = []
        found: dict[str, tuple[str, str, str, int]] = {}
        for param, name in zip(self.made.params, self.order, strict=True):
            buffer = self.made.buffer_map.get(param)
            if buffer is None:
                given.append((str(param.dtype), "number", name, 0))
                continue
            given.append(("address", "address", name, 0))
            for what, extents in (("size", buffer.shape), ("stride", buffer.strides)):
                for axis, extent in enumerate(extents):
                    if hasattr(extent, "name"):
                        found[str(extent.name)] = str(extent.dtype), what, name, axis
        return [*given, *(found[name] for name in symbols)]


def library(folder: Path, host: str = "", name: str = "stand_in") -> Path:
    """The stand-in, with TileLang's host code, which must not find the driver that TileLang brings."""
    source, path = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(STAND_IN.read_text() + host)
    compiler = find_toolchain().command
    words = ("-std=c++17", "-shared", "-fPIC", "-Wl,-Bsymbolic", "-w", str(source), "-o", str(path))
    subprocess.run([*compiler, *words], check=True)
    return path
