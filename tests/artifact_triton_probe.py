"""Calls packages or operators in Triton's interpreter; run by test_artifact_triton.py.

``probe.py packages in.pt out.pt`` calls packages of the current folder where attncompiler cannot be imported,
``probe.py operators in.pt out.pt`` the operators of its variant files, ``probe.py unready in.pt out.pt`` one package
without a GPU, and then without Triton.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from artifact_probe import Blocked, mistakes, results  # beside this file


class WithoutTriton(Blocked):
    """A finder that does not find Triton either."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"{name} is blocked", name="triton")
        super().find_spec(name, path, target)


def listed(engine: Any, target: Any) -> dict[str, list[Any]]:
    """How each kernel of float32 is cut on a target."""
    dims = ("float32", 16, 24)
    return {
        kind: [astuple(c) for c in engine.sources.configs(kind, target, dims)]
        for kind in ("forward", "rows", "columns")
    }


def of_packages(asked: dict[str, Any]) -> dict[str, Any]:
    """What packages give, and the mistakes of their calls."""
    sys.meta_path.insert(0, Blocked())
    found: dict[str, Any] = {}
    for name, wanted in asked.items():
        package = importlib.import_module(name)
        found[name] = {
            "calls": [results(package.attention, *call) for call in wanted["calls"]],
            "mistakes": mistakes(package.attention, wanted["wrong"]),
        }
        targets = importlib.import_module(f"{name}.support.backends.gpu_targets").TARGETS
        engine = package._operator._run._engines._engines["cuda"]
        found[name]["tiles"] = {arch: listed(engine, target) for arch, target in targets.items()}
        if wanted.get("compile"):
            compiled = torch.compile(package.attention, backend="aot_eager", fullgraph=True)
            found[name]["compiled"] = results(compiled, *wanted["calls"][0])
    found["alien"] = sorted({"attncompiler", "jinja2", "islpy"} & set(sys.modules))
    return found


def of_operators(asked: dict[str, Any]) -> dict[str, Any]:
    """What the operators of the same variants give."""
    from attncompiler import compile as compile_variant
    from attncompiler.backends.gpu_targets import TARGETS
    from attncompiler.variant_file import load_variant

    found = {}
    for name, wanted in asked.items():
        operator = compile_variant(load_variant(Path(f"{name}_variant.py")), backend="triton")
        found[name] = {"calls": [results(operator, *call) for call in wanted["calls"]]}
        engine = operator._engines["cpu"]
        found[name]["tiles"] = {arch: listed(engine, target) for arch, target in TARGETS.items()}
    return found


def unready(asked: dict[str, Any]) -> dict[str, Any]:
    """The mistakes of the same call: on a CPU, then in an interpreter that is not there."""
    sys.meta_path.insert(0, WithoutTriton())
    ((name, wanted),) = asked.items()
    package = importlib.import_module(name)
    call, _ = wanted["calls"][0]
    found = {}
    for place in ("cpu", "without triton"):
        found |= mistakes(package.attention, {place: {**call, "tensors": dict(call["tensors"])}})
        os.environ["TRITON_INTERPRET"] = "1"
    return found


if __name__ == "__main__":
    made = {"packages": of_packages, "operators": of_operators, "unready": unready}[sys.argv[1]](
        torch.load(sys.argv[2], weights_only=False)
    )
    torch.save(made, sys.argv[3])
