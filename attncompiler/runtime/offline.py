"""Turns GPU kernels into binaries for GPUs that are not there, and reads from them what a block would take.

Each compile runs in a worker process (``offline_worker.py`` for Triton, ``tilelang_worker.py`` for TileLang), so that a
compiler that hangs, aborts or fails an assertion is an answer about one configuration and not the end of this process.
Binaries go to the cache, keyed by the source's text, the arguments, the target and the compiler's version: a second
request costs a fraction of a millisecond.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue

from attncompiler.backends.gpu_targets import Target
from attncompiler.runtime import cache
from attncompiler.runtime.errors import MissingTritonError
from attncompiler.runtime.offline_process import OfflineCompiler, RefusedError, Worker
from attncompiler.runtime.offline_records import (
    Built,
    Constant,
    Failed,
    KernelRequest,
    Language,
    Lowered,
)
from attncompiler.runtime.offline_worker import FILES
from attncompiler.runtime.tilelang_offline import TILELANG

# Part of the key: raise it when the report or the options of the compiler change.
_FORMAT = "2"
Result = Built | Lowered | Failed


def compile_offline(
    requests: Iterable[KernelRequest],
    target: Target,
    *,
    timeout_s: float = 120.0,
    folder: Path | None = None,
    jobs: int = 1,
) -> list[Result]:
    """Compile kernels for ``target``, which need not be here; answers in the order of ``requests``.

    ``timeout_s`` bounds the seconds of one compile, ``folder`` is where binaries go (the user's cache), ``jobs`` is
    how many compile at a time. Raises MissingTritonError or MissingTilelangError without the compiler, CacheError where
    the folder cannot be written, OSError where a source cannot be read; all else is a Failed.
    """
    pairs = [(request, target) for request in requests]
    return compile_all(pairs, timeout_s=timeout_s, folder=folder, jobs=jobs)


def compile_all(
    requests: Iterable[tuple[KernelRequest, Target]],
    *,
    timeout_s: float = 120.0,
    folder: Path | None = None,
    jobs: int = 1,
    each: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """``compile_offline`` with a target for every kernel; ``each`` hears of every answer, in the thread that has it."""
    todo = list(requests)
    versions = {name: COMPILERS[name].version() for name in {r.language for r, _ in todo}}
    results: list[Result | None] = [None] * len(todo)
    queue: SimpleQueue[int] = SimpleQueue()
    for index in range(len(todo)):
        queue.put(index)

    def work() -> None:
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(Worker(COMPILERS[name].module, timeout_s))
                for name in versions
            }
            while True:
                try:
                    index = queue.get_nowait()
                except Empty:
                    return
                name = todo[index][0].language
                result = _best(*todo[index], versions[name], workers[name], folder)
                results[index] = result
                each(result)

    with ThreadPoolExecutor(max(1, min(jobs, len(todo)))) as pool:
        for done in [pool.submit(work) for _ in range(max(1, min(jobs, len(todo))))]:
            done.result()
    return [result for result in results if result is not None]


def _best(
    request: KernelRequest, target: Target, version: str, worker: Worker, root: Path | None
) -> Result:
    """As the assembler likes it, unless that spills and it does better when it is told how many registers there are."""
    untold = _compile(replace(request, registers=0), target, version, worker, root)
    found = replace(untold, request=request)
    if not isinstance(found, Built) or not found.spilled or found.registers >= request.registers:
        return found
    told = _compile(request, target, version, worker, root)
    return told if isinstance(told, Built) and told.spilled < found.spilled else found


def _compile(
    request: KernelRequest, target: Target, version: str, worker: Worker, root: Path | None
) -> Result:
    compiler = COMPILERS[request.language]

    def fill(folder: Path) -> None:
        answer = worker.ask(**compiler.question(request, target), folder=str(folder))
        (folder / "report.json").write_text(json.dumps(answer))

    key = cache.content_key(_FORMAT, request.key, target.name, version)
    try:
        folder, cached = cache.entry(f"{target.name}-{request.kernel}", key, fill, root)
    except RefusedError as refused:
        return Failed(request, target, str(refused))
    return compiler.answer(request, target, folder, cached)


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingTritonError from error


def _triton_question(request: KernelRequest, target: Target) -> dict[str, object]:
    return {
        "source": str(request.source.resolve()), "kernel": request.kernel, "signature": dict(request.signature),
        "constexprs": dict(request.constexprs), "aligned": sorted(request.aligned), "num_warps": request.num_warps,
        "num_stages": request.num_stages, "registers": request.registers, "backend": _triton_backend(target),
        "arch": target.triton_arch, "warp_size": target.warp_size,
    }  # fmt: skip


def _triton_answer(request: KernelRequest, target: Target, folder: Path, cached: bool) -> Built:
    report = json.loads((folder / "report.json").read_text())
    report["warnings"] = tuple(report["warnings"])
    binary, text = (folder / f"kernel.{suffix}" for suffix in FILES[_triton_backend(target)])
    return Built(request, target, binary, text, **report, cached=cached)


def _triton_backend(target: Target) -> str:
    return "cuda" if target.is_nvidia else "hip"


TRITON = OfflineCompiler(
    "attncompiler.runtime.offline_worker", _triton_version, _triton_question, _triton_answer
)
COMPILERS: dict[Language, OfflineCompiler] = {"triton": TRITON, "tilelang": TILELANG}

__all__ = [
    "Built",
    "Constant",
    "Failed",
    "KernelRequest",
    "Lowered",
    "Result",
    "compile_all",
    "compile_offline",
]
