"""The self test of a package: compares its kernels, and their gradients, with its dense definition in float64.

An error may be twice that of the dense definition in the element type of the call, plus the floor of ``yardstick.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from attncompiler.cases import Case
from attncompiler.gradient_check import Leaves, arguments_of, gradients, leaves_of
from attncompiler.runtime.carried_binaries import best_for
from attncompiler.runtime.interpreting import is_interpreting
from attncompiler.runtime.sampled import DrawnTensor, Sampled
from attncompiler.yardstick import (
    Comparison,
    compare,
    compare_gradients,
    completed,
    draw_inputs,
    named,
    plain_type,
)

# Odd lengths both ways, groups of heads, offsets, strides, and one call large enough for planned tiles.
CASES = (
    Case(B=2, H=6, G=2, M=63, N=129, q_start=66, seed=1),
    Case(B=1, H=3, G=1, M=129, N=257, layout="swapped", seed=2),
    Case(B=2, H=2, G=2, M=127, N=63, q_start=1, layout="padded", seed=3),
    Case(B=1, H=1, G=1, M=5, N=1, seed=4),
    Case(B=1, H=2, G=1, M=260, N=301, layout="broadcast", seed=5),
)
# Triton's interpreter takes a second for what these hold: two or three tiles each way, and pieces.
INTERPRETED_CASES = (
    Case(B=1, H=2, G=1, M=70, N=131, q_start=61, seed=1),
    Case(B=2, H=1, G=1, M=129, N=66, layout="padded", seed=2),
    Case(B=1, H=2, G=2, M=5, N=1, layout="swapped", seed=3),
)
Attention = Callable[..., Any]


class SelfTest:
    """One package: its manifest, its operator, its dense definition and what draws its tensors."""

    def __init__(
        self, manifest: Mapping[str, Any], attention: Attention, dense: Attention, carrier: type
    ) -> None:
        self.manifest, self.attention, self.dense = manifest, attention, dense
        self.carrier = carrier if issubclass(carrier, Sampled) else Sampled
        self.prepares = hasattr(carrier, "prepare")
        self.tensors = {n: DrawnTensor.read(x) for n, x in manifest["sample"].items()}

    def run(self) -> int:
        """Print a line for each case; 1 when one fails or no kernel of the package runs here, else 0."""
        missing = self.missing()
        devices = self.devices()
        failed = sum(self.run_on(device) for device in devices)
        if devices:
            print(f"{failed} failed" if failed else "all passed")
        if missing:
            print(f"not tested: {missing}")
        return 1 if failed or not devices else 0

    def devices(self) -> tuple[str, ...]:
        """Where the kernels of the package run on this machine; in Triton's interpreter that is the CPU."""
        backends = self.manifest["backends"]
        if "triton" in backends and is_interpreting():
            return ("cpu",) if find_spec("triton") is not None else ()
        return tuple(
            device for name, device in backends.items() if device == "cpu" or not self.lacks(name)
        )

    def missing(self) -> str:
        """Why kernels of the package cannot be tested here, and what to do; empty where all can."""
        backends = self.manifest["backends"]
        if "triton" in backends and find_spec("triton") is not None and is_interpreting():
            rest = [name for name in backends if name != "triton"]
            return f"the {', '.join(rest)} kernels: unset TRITON_INTERPRET" if rest else ""
        reasons = (self.lacks(name) for name, device in backends.items() if device != "cpu")
        return "; ".join(reason for reason in reasons if reason)

    def lacks(self, backend: str) -> str:
        """What the kernels of a backend for GPUs lack on this machine, in words; empty where they can run."""
        if backend == "triton" and find_spec("triton") is None:
            return "the kernels for GPUs need Triton, which is not installed: pip install triton (Linux)"
        if not torch.cuda.is_available():
            if backend == "tilelang":
                return "the TileLang kernels need a GPU, and torch finds none"
            return (
                "the Triton kernels need a GPU, and torch finds none. To check them on the CPU, in Triton's "
                f"interpreter: TRITON_INTERPRET=1 python -m {self.package}.selftest"
            )
        return self.lacks_binaries() if backend == "tilelang" else ""

    def lacks_binaries(self) -> str:
        """Why neither the package nor TileLang has kernels for the GPU that is here; empty where they do."""
        if find_spec("tilelang") is not None:
            return ""
        install = "TileLang, which would build them, is not installed: pip install tilelang"
        if torch.version.hip:
            return f"the package has no binaries for AMD's GPUs, and {install}"
        able = torch.cuda.get_device_capability()
        for kernel in (k for k in self.manifest["kernels"] if "binaries" in k):
            known = list(dict.fromkeys(b["arch"] for b in kernel["binaries"] if b["binary"]))
            if not best_for(known, able):
                name = f"sm_{able[0]}{able[1]}"
                return (
                    f"the package has binaries for {', '.join(known) or 'no GPU'}, not for {name}, and {install}; "
                    f"or {self.manifest['command']} --arch {name}"
                )
        return ""

    @property
    def unaligned(self) -> bool:
        """Whether rows may begin anywhere: the binaries of a package are for those at multiples of 16 bytes."""
        return "tilelang" not in self.manifest["backends"] or find_spec("tilelang") is not None

    def laid_out(self, case: Case, device: str) -> Case:
        """The case with a layout that the kernels here take."""
        if case.layout == "padded" and device == "cuda" and not self.unaligned:
            return replace(case, layout="swapped")
        return case

    @property
    def package(self) -> str:
        """What the package is called."""
        return str(self.attention.__module__)

    def run_on(self, device: str) -> int:
        """Print a line for each dtype and case; how many failed."""
        failed = 0
        cases: Sequence[Case] = CASES
        interprets = "triton" in self.manifest["backends"] and is_interpreting()
        if "cuda" in self.manifest["backends"].values():
            if interprets:
                cases = INTERPRETED_CASES
            print(f"on {device}" + (", in Triton's interpreter" if interprets else ""))
        print(f"{'dtype':<17}{'case':<44}{'worst':<18}{'error':>9}{'plain':>10}{'limit':>10}")
        for dtype in self.manifest["dtypes"]:
            for number, case in enumerate(cases):
                params = self.other_values() if number % 2 else self.values()
                case = self.laid_out(self.fitted(replace(case, dtype=dtype)), device)
                found = list(self.comparisons(case, params, device))
                worst = max(found, key=lambda c: (not c.passed, c.ratio))
                failed += not worst.passed
                sizes = " ".join(
                    f"{n}={getattr(case, n)}" for n in ("B", "H", "G", "M", "N", "q_start")
                )
                print(
                    f"{dtype:<17}{sizes:<44}{worst.what:<18}{worst.error:9.1e}{worst.plain_error:10.1e}"
                    f"{worst.limit:10.1e}{'' if worst.passed else '  FAILED'}"
                )
        return failed

    def values(self) -> dict[str, float]:
        """The parameters' own values."""
        call = self.manifest["call"]
        return {name: call["values"][name] for name in call["kinds"]}

    def other_values(self) -> dict[str, float]:
        """Other values of the parameters, not far from their own."""
        return {
            name: x if isinstance(x, bool) else x + 3 if isinstance(x, int) else 0.75 * x
            for name, x in self.values().items()
        }

    def fitted(self, case: Case) -> Case:
        """The case with the head dimensions of the package and enough tokens for what the variant reads."""
        made = self.manifest
        case = replace(case, D=made["head_dim"], Dv=made["value_dim"])
        if made["tokens"]:
            more = case.seed % 2 * 7
            case = replace(case, M=made["tokens"] + more, N=made["tokens"] + more, q_start=0)
        if made["reads_keys_at_queries"]:
            case = replace(case, N=max(case.N, case.q_start + case.M))
        return case

    def comparisons(
        self, case: Case, params: Mapping[str, float], device: str
    ) -> Iterator[Comparison]:
        """The output, the statistics and, where the package has a backward, the gradients of one case."""
        view: Any = object.__new__(self.carrier)
        view.__dict__.update(self.manifest["call"]["values"])
        view.__dict__.update(params, tensors=self.tensors)
        q, k, v, tensors = draw_inputs(case, view.sample, prepares=self.prepares)
        q, k, v = q.to(device), k.to(device), v.to(device)
        tensors = {name: x.to(device) for name, x in tensors.items()}
        given = dict(params)
        given.pop("scale", None)

        def call(
            function: Attention, leaves: Leaves, **more: Any
        ) -> tuple[Tensor, dict[str, Tensor]]:
            mine = arguments_of(leaves, others)
            result: tuple[Tensor, dict[str, Tensor]] = function(
                *mine[:3], q_start=case.q_start, return_stats=True, **mine[3], **given, **more
            )
            return result

        leaves, others = leaves_of(q, k, v, tensors, case.dtype)
        with torch.no_grad():
            exact = named(*call(self.dense, leaves, dtype=torch.float64))
            plain = completed(
                named(*call(self.dense, leaves, dtype=plain_type(case.dtype))),
                exact,
                lambda: named(*call(self.dense, leaves, dtype=torch.float32)),
            )
            mine = named(*call(self.attention, leaves))
        for name, expected in exact.items():
            yield compare(name, mine[name], plain[name], expected)
        if self.manifest["program"]["gradient"] is not None:
            found = gradients(
                lambda x, dtype: call(self.dense, x, dtype=dtype),
                lambda *tokens, **named: self.attention(*tokens, **named, **given),
                leaves,
                others,
                case,
            )
            yield from compare_gradients(found, case.dtype)
