"""Turns a case into the seconds until its first result, in a new process with empty caches, ours and FlexAttention's.

``python -m attncompiler.benchmarks.build_time flex CASE...`` is that process: it imports, then times each case's first
call in turn and prints the seconds as JSON. The first case of a process also pays for what its compiler sets up once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from time import perf_counter

from attncompiler.benchmarks.report import OURS, BuildLine

_LENGTH = 1024


def measure(name: str, cases: Sequence[str], device: str) -> Iterator[BuildLine]:
    """A line a case, of ``attncompiler`` or ``flex``."""
    with tempfile.TemporaryDirectory() as folder:
        # Their own places: a cache that answers would measure nothing.
        places = {
            "ATTNCOMPILER_CACHE": f"{folder}/kernels",
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
            "TRITON_CACHE_DIR": f"{folder}/triton",
        }
        done = subprocess.run(
            [sys.executable, "-m", "attncompiler.benchmarks.build_time", name, device, *cases],
            env=os.environ | places, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
        yield from (BuildLine(name, case, None, reason) for case in cases)
        return
    found = json.loads(done.stdout.splitlines()[-1])
    for case in cases:
        yield BuildLine(name, case, **found[case])


def first_results(name: str, device: str, cases: Sequence[str]) -> dict[str, dict[str, object]]:
    """Seconds of each case's first call in this process, or why there is none."""
    import torch

    from attncompiler.benchmarks.suite import case
    from attncompiler.comparison import Size, caller, inputs_for
    from attncompiler.compiler import compile as compile_variant
    from attncompiler.peers import Refusal, peer

    found: dict[str, dict[str, object]] = {}
    for each in cases:
        variant = case(each).variant
        inputs = inputs_for(variant, Size(_LENGTH), device=device)
        begin = perf_counter()
        with torch.no_grad():
            if name == OURS:
                caller(compile_variant(variant), inputs)()
            else:
                made = peer(name, variant, inputs)
                if isinstance(made, Refusal):
                    found[each] = {"seconds": None, "refusal": made.reason}
                    continue
        if device == "cuda":
            torch.cuda.synchronize()
        found[each] = {"seconds": perf_counter() - begin, "refusal": ""}
    return found


if __name__ == "__main__":
    print(json.dumps(first_results(sys.argv[1], sys.argv[2], sys.argv[3:])))
