"""Loaded kernels share the process with torch: one OpenMP runtime, its threads, little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import attncompiler
from attncompiler.dsl import Variant


class Plain(Variant):
    pass


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_one_openmp_runtime() -> None:
    q = torch.randn(1, 2, 300, 4)
    attncompiler.compile(Plain)(q, q, q)
    maps = Path("/proc/self/maps").read_text()
    runtimes = {
        line.split()[-1]
        for line in maps.splitlines()
        if any(n in line for n in ("gomp", "libomp", "iomp5"))
    }
    assert len(runtimes) == 1, runtimes


def run_script(body: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_threads_follow_torch() -> None:
    """A kernel on n threads is the caller and n - 1 threads of torch's own pool."""
    out = run_script(
        """
        import os, torch, attncompiler
        from attncompiler.dsl import Variant
        class Plain(Variant):
            pass
        x = torch.randn(2, 4, 512, 64)
        op = attncompiler.compile(Plain)
        op.build()
        def count():
            return len(os.listdir("/proc/self/task"))
        counts = [count()]
        for threads in (1, 4, 2):
            torch.set_num_threads(threads)
            op(x, x, x)
            counts.append(count())
            (x + 1).sum()  # torch's own loops on the same pool
            counts.append(count())
        print(*counts)
        """,
        OMP_NUM_THREADS="1",
    )
    first, *counts = map(int, out.split())
    assert [n - first for n in counts[:3]] == [0, 0, 3]
    assert max(counts) == first + 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_long_window_takes_little_memory() -> None:
    """131072 queries and keys in a causal window of 1024: under 100 MB beyond inputs and output."""
    out = run_script(
        """
        import time, torch, attncompiler
        from attncompiler.dsl import Variant, causal
        class Window(Variant):
            window: int = 1024
            def mask(self, at):
                return causal(at) & (at.q - at.k < self.window)
        def peak():
            status = open("/proc/self/status").read()
            return int(status.split("VmHWM:")[1].split()[0])
        op = attncompiler.compile(Window)
        q, k, v = (torch.randn(1, 1, 131072, 64) for _ in range(3))
        op(q[:, :, :8], k[:, :, :8], v[:, :, :8])
        result_kb = q.numel() * 4 // 1024
        open("/proc/self/clear_refs", "w").write("5")
        before = peak()
        clock = time.perf_counter()
        op(q, k, v)
        print(peak() - before - result_kb, time.perf_counter() - clock)
        """
    )
    extra_kb, seconds = map(float, out.split())
    assert extra_kb < 100_000, f"{extra_kb / 1000:.0f} MB"
    assert seconds < 60


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_training_on_a_long_window_takes_little_memory() -> None:
    """32768 queries and keys: beyond inputs, output and gradients, a few rows of numbers for each query and key."""
    out = run_script(
        """
        import torch, attncompiler
        from attncompiler.dsl import Variant, causal
        class Window(Variant):
            window: int = 512
            def mask(self, at):
                return causal(at) & (at.q - at.k < self.window)
        def peak():
            status = open("/proc/self/status").read()
            return int(status.split("VmHWM:")[1].split()[0])
        op = attncompiler.compile(Window)
        q, k, v = (torch.randn(1, 1, 32768, 64, requires_grad=True) for _ in range(3))
        torch.autograd.grad(op(q[:, :, :8], k[:, :, :8], v[:, :, :8]).sum(), (q, k, v))
        open("/proc/self/clear_refs", "w").write("5")
        before = peak()
        out = op(q, k, v)
        gradients = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
        results = sum(x.numel() * 4 // 1024 for x in (out, out, *gradients))
        print(peak() - before - results)
        """,
        OMP_NUM_THREADS="2",
    )
    tensor_kb = 32768 * 64 * 4 // 1024
    # Two copies of the gradients of keys and values, one a thread, before they are summed.
    assert float(out) < 5 * tensor_kb + 20_000, f"{float(out) / 1000:.0f} MB"


def test_a_small_call_costs_little() -> None:
    """A call without gradients enters few functions; the steps are counted, as times depend on the machine."""
    out = run_script(
        """
        import collections, sys, torch, attncompiler
        from attncompiler.dsl import Tensor, Variant, causal
        class Sunk(Variant):
            window: int = 8
            sink = Tensor("h")
            def mask(self, at):
                return causal(at) & (at.q - at.k < self.window)
            def score(self, s, at):
                return s + self.sink[at.h] * at.k
        op = attncompiler.compile(Sunk)
        q, k, v = torch.randn(3, 1, 1, 16, 64)
        sink = torch.zeros(1, requires_grad=True)
        entered = collections.Counter()
        def count(frame, event, argument):
            if event == "call":
                entered[frame.f_code.co_qualname] += 1
            elif event == "c_call":
                entered[argument.__name__] += 1
        with torch.no_grad():
            op(q, k, v, sink=sink, window=4)
            sys.setprofile(count)
            op(q, k, v, sink=sink, window=4)
            sys.setprofile(None)
        print(entered.total(), entered["empty"], entered["Launcher._checked"])
        """
    )
    steps, allocated, checked = map(int, out.split())
    assert steps <= 65, steps
    assert (allocated, checked) == (1, 0)
