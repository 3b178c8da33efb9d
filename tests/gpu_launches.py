"""Calls of an operator on a stand-in for a GPU: ``python -m tests.gpu_launches sm_90 40960``, without TRITON_INTERPRET.

Prints what tests/test_gpu_launches.py looks at: for each step the kernels that were launched, and with what.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

import attncompiler
from attncompiler.dsl import Tensor, Variant, causal, clamp, document, sigmoid
from tests.gpu_stand_in import StandIn, stand_in


class Documents(Variant):
    """Tiles are listed by a kernel; a table gets its gradient from many programs."""

    ids = Tensor("k", dtype="int")
    table = Tensor("h", 9)

    def score(self, s: Any, at: Any) -> Any:
        return s + self.table[at.h, clamp(at.q - at.k, -4, 4) + 4]

    def mask(self, at: Any) -> Any:
        return causal(at) & document(at, self.ids)


class Plain(Variant):
    """Softmax over all keys."""


class Unnormalized(Variant):
    """Sigmoids of all keys: another kernel, which no device has loaded yet."""

    def normalize(self, s: Any, row: Any) -> Any:
        return sigmoid(s)


def leaves() -> list[torch.Tensor]:
    """q, k and v."""
    return [torch.randn(1, 2, 300, 64).half().requires_grad_() for _ in range(3)]


def noted(device: StandIn) -> list[dict[str, Any]]:
    """The launches since the last time."""
    found = [
        {
            "kernel": launch.kernel,
            "grid": launch.grid,
            "stream": launch.stream,
            "warps": launch.options.num_warps,
            "stages": launch.options.num_stages,
            "registers": getattr(launch.options, "maxnreg", None),
            "shared": launch.options.shared,
            "threads": launch.options.num_warps * launch.options.target.warp_size,
        }
        for launch in device.launches
    ]
    device.launches.clear()
    return found


def training(device: StandIn) -> dict[str, Any]:
    """A step of training, and further calls on the same stream and on another one."""
    operator = attncompiler.compile(Documents, backend="triton")
    q, k, v = (torch.randn(2, h, 160, 32, dtype=torch.bfloat16) for h in (4, 2, 2))
    ids, table = torch.arange(160) // 60, torch.randn(4, 9)
    wanted = [x.requires_grad_() for x in (q, k, v, table)]
    out = operator(q, k, v, ids=ids, table=table)
    found = {"forward": noted(device)}
    torch.autograd.grad(out.sum(), wanted)
    found["backward"] = noted(device)
    for step, stream in (("again", 7), ("another stream", 8), ("that stream again", 8)):
        device.stream = stream
        operator(q, k, v, ids=ids, table=table)
        found[step] = noted(device)
    ids.add_(1)
    operator(q, k, v, ids=ids, table=table)
    return found | {"other documents": noted(device)}


def choosing(device: StandIn) -> dict[str, Any]:
    """Calls on a device that spills with more than four warps."""
    device.spills = lambda options: 3 if options.num_warps > 4 else 0
    operator = attncompiler.compile(Plain, backend="triton")
    q, k, v = leaves()
    operator(q, k, v)
    found = {"tried": noted(device)}
    operator(q, k, v)
    return found | {"kept": noted(device)}


def refusing(device: StandIn) -> dict[str, Any]:
    """A call on a device with little shared memory."""
    operator = attncompiler.compile(Unnormalized, backend="triton")
    operator(*leaves())
    return {"launched": noted(device)}


def main(arch: str, memory: int) -> None:
    """Run all of it on one architecture; at the end on a device with so many bytes of shared memory."""
    with stand_in(arch) as device:
        found = {"training": training(device), "choosing": choosing(device)}
    with stand_in(arch, memory=memory) as device:
        found["refusing"] = refusing(device)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
