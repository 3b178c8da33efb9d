"""Calls a package of TileLang kernels on a stand-in for the CUDA driver; run by test_tilelang_package.py.

``probe.py in.pt out.pt``, where neither attncompiler nor what is named ``blocked`` can be imported. Tensors lie on the
CPU: what asks torch about a GPU is answered here, all else is the package's own code, from ``attention(...)`` to the
driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from artifact_probe import Blocked, results  # beside this file
from tilelang_host_calls import arguments, loaded, noted

STREAM = 0x1234567


class Package:
    """A package that believes to be on a GPU of a compute capability."""

    def __init__(self, name: str, driver: Path, capability: tuple[int, int], hosts: Any) -> None:
        self.module = importlib.import_module(name)
        self.folder = Path(self.module.__file__ or "").parent
        self.heard: list[dict[str, Any]] = []
        self.hosts = {
            path: (loaded(Path(library)), meanings) for path, (library, meanings) in hosts.items()
        }
        self._stand_in(name, loaded(driver), capability)

    def _stand_in(self, name: str, library: Any, capability: tuple[int, int]) -> None:
        def part(module: str) -> Any:
            return importlib.import_module(f"{name}.support.runtime.{module}")

        launch, packaged, engine = map(
            part, ("tilelang_launch", "packaged_tilelang", "triton_engine")
        )
        tilings, driver, binary = map(part, ("tilings", "cuda_driver", "tilelang_binary"))
        launch.on_gpu = lambda device: True
        launch.capability = packaged.capability = lambda device: capability
        torch.cuda.current_device = lambda: 0
        torch.cuda.current_stream = lambda device: SimpleNamespace(cuda_stream=STREAM)
        target = tilings.target_for("sm_{}{}".format(*capability)).target

        def listed(configs: Any, *tensors: Any, **more: Any) -> Any:
            return tilings.tilings_for(configs(target), *tensors, **more)

        engine.tilings = listed
        engines = self.module._operator._run._engines
        engines.of = lambda q: engines._engines["cuda"]

        class Noting(driver.Driver):  # type: ignore[misc, name-defined]
            def launch(self, *words: Any) -> None:
                sizes = [ctypes.sizeof(x) for x in words[-1]]
                library.parameter_sizes((ctypes.c_uint * len(sizes))(*sizes), len(sizes))
                super().launch(*words)

        made = Noting(library)
        packaged.cuda_driver = lambda: made
        images = {
            hashlib.sha256(path.read_bytes()).hexdigest(): path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*.cubin")
        }
        run = binary.BinaryKernel.run

        def noting(kernel: Any, values: Any, device: int, stream: int) -> None:
            library.start(0, 0)
            run(kernel, values, device, stream)
            mine = [x for x in noted(library) if x.startswith(("encode", "launch"))]
            path = images[hashlib.sha256(kernel._image).hexdigest()]
            host, meanings = self.hosts.get(path, (None, None))
            wanted = None
            if host is not None:
                host.start(0, 0)
                status = host.call(*arguments(meanings, values), ctypes.c_void_p(stream))
                wanted = [f"status {status}"] if status else noted(host)
            self.heard.append({"binary": path, "mine": mine, "wanted": wanted})

        binary.BinaryKernel.run = noting

    def tried(self, call: dict[str, Any]) -> dict[str, Any]:
        """What a call launches, and the mistake it ends with."""
        self.heard = []
        error = None
        with contextlib.ExitStack() as stack:
            if not call["weights"]:
                stack.enter_context(torch.no_grad())
            try:
                if call["stats"] and call["weights"]:
                    held = {n: call["tensors"][n] for n in call.get("constant", ())}
                    rest = {n: x for n, x in call["tensors"].items() if n not in held}
                    attention = functools.partial(self.module.attention, **held)
                    results(attention, {**call, "tensors": rest}, call["weights"])
                elif call["stats"]:
                    results(self.module.attention, call, {})
                else:
                    self._plain(call)
            except Exception as caught:
                error = type(caught).__name__, str(caught)
        return {"heard": self.heard, "error": error}

    def _plain(self, call: dict[str, Any]) -> None:
        """A call without statistics; with weights, the gradients of its sum for what the call says learns."""
        leaves = dict(call["tensors"])
        if call["weights"]:
            leaves = {n: x.clone() for n, x in leaves.items()}
            for name in call["learns"]:
                leaves[name].requires_grad_()
        tokens = [leaves.pop(n) for n in "qkv"]
        options = call.get("options", {})
        out = self.module.attention(*tokens, **leaves, **call["params"], **options)
        if call["weights"]:
            out.backward(torch.ones_like(out))


def main(inputs: str, outputs: str) -> None:
    sys.meta_path.insert(0, Blocked())
    asked = torch.load(inputs, weights_only=False)
    for name in asked["blocked"]:
        sys.modules[name] = None  # type: ignore[assignment]
    package = Package(asked["package"], Path(asked["driver"]), asked["capability"], asked["hosts"])
    found: dict[str, Any] = {name: package.tried(call) for name, call in asked["calls"].items()}
    aliens = {"attncompiler", "jinja2", "islpy", "tvm", *asked["blocked"]}
    found["alien"] = sorted(n for n in aliens if sys.modules.get(n) is not None)
    torch.save(found, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
