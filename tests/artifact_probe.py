"""Calls a package where attncompiler cannot be imported; run by test_artifact.py: ``probe.py package in.pt out.pt``."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch


class Blocked:
    """A finder that finds no compiler."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in ("attncompiler", "ir", "backends", "jinja2", "islpy", "click"):
            raise ImportError(f"{name} is blocked")


def results(function: Any, call: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """The output, the statistics and, with ``weights``, the gradients of their weighted sum."""
    leaves = {n: x.clone() for n, x in call["tensors"].items()}
    if weights:
        leaves = {n: x.requires_grad_() if x.is_floating_point() else x for n, x in leaves.items()}
    tokens = [leaves.pop(n) for n in ("q", "k", "v")]
    out, stats = function(*tokens, return_stats=True, **leaves, **call["params"])
    found = {"out": out, **stats}
    learned = {
        n: x for n, x in (*zip("qkv", tokens, strict=True), *leaves.items()) if x.requires_grad
    }
    if weights:
        loss = sum((found[n] * w).sum() for n, w in weights.items())
        found |= {
            f"grad {n}": g
            for n, g in zip(learned, torch.autograd.grad(loss, learned.values()), strict=True)
        }
    return {n: x.detach() for n, x in found.items()}


def mistakes(function: Any, wrong: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """The class and the text of what each wrong call raises."""
    found = {}
    for name, call in wrong.items():
        tokens = [call["tensors"].pop(n) for n in ("q", "k", "v")]
        try:
            function(*tokens, **call["tensors"], **call["params"])
        except Exception as error:
            found[name] = type(error).__name__, str(error)
    return found


def main(name: str, inputs: str, outputs: str) -> None:
    sys.meta_path.insert(0, Blocked())
    package = importlib.import_module(name)
    asked = torch.load(inputs, weights_only=False)
    torch.manual_seed(0)
    found: dict[str, Any] = {
        "calls": [results(package.attention, call, asked["weights"]) for call in asked["calls"]],
        "mistakes": mistakes(package.attention, asked["wrong"]),
        "signature": package.attention.__doc__,
        "alien": sorted({"attncompiler", "jinja2", "islpy"} & set(sys.modules)),
    }
    if asked["compile"]:
        compiled = torch.compile(package.attention, backend="aot_eager", fullgraph=True)
        found["compiled"] = results(compiled, asked["calls"][0], asked["weights"])
    held = {n: x for n, x in asked["calls"][0]["tensors"].items() if n not in "qkv"}
    module = package.Attention(**held)
    tokens = [asked["calls"][0]["tensors"][n] for n in "qkv"]
    found["module"] = module(*tokens, **asked["calls"][0]["params"]).detach()
    found["state"] = sorted(module.state_dict())
    torch.save(found, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
