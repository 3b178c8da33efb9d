"""Turns this machine into the few words that its numbers depend on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from attncompiler.runtime.toolchain import processor, tiles_are_lent


def machine(device: str) -> dict[str, object]:
    """Processor or card, threads, versions."""
    versions: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cuda":
        return {"processor": torch.cuda.get_device_name(), "cuda": torch.version.cuda, **versions}
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    tiles = " amx_tile " in f"{processor()} " and tiles_are_lent()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": model,
        "instructions": torch.backends.cpu.get_cpu_capability() + (" and AMX" if tiles else ""),
        "cores": cores,
        "threads": torch.get_num_threads(),
        **versions,
    }
