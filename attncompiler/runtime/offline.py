"""Turns Triton kernels into binaries for GPUs that are not there, and reads from them what a block would take.

Each compile runs in a worker process (``offline_worker.py``), so that a compiler that hangs, aborts or fails an
assertion is an answer about one configuration and not the end of this process. Binaries go to the cache, keyed by the
source's text, the arguments, the target and Triton's version: a second request costs a fraction of a millisecond.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from attncompiler.backends.gpu_targets import Target
from attncompiler.runtime import cache
from attncompiler.runtime.errors import MissingTritonError
from attncompiler.runtime.offline_worker import FILES

# Part of the key: raise it when the report or the options of the compiler change.
_FORMAT = "2"
Constant = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """One kernel in one configuration.

    ``source`` is a Python file that holds the ``@triton.jit`` function ``kernel`` and everything of ours it calls:
    its text is the key of the cache. ``signature`` gives Triton's type of every argument (``"*bf16"``, ``"i32"``,
    ``"fp32"``) except those in ``constexprs``; ``aligned`` are the arguments that 16 divides.
    """

    source: Path
    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Constant]
    aligned: frozenset[str] = frozenset()
    num_warps: int = 4
    num_stages: int = 2

    @property
    def key(self) -> str:
        """All that decides the binary, but for the target and the compiler."""
        parts = (
            dict(self.signature), dict(self.constexprs), sorted(self.aligned), self.num_warps, self.num_stages,
        )  # fmt: skip
        return json.dumps([self.source.read_text(), self.kernel, *parts], sort_keys=True)


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel that compiled, and what it takes.

    ``registers``, ``stack`` and the spills are a thread's, in 32-bit registers and bytes; ``shared`` is a block's
    shared memory, dynamic and static, in bytes; ``num_warps`` counts those that warp specialisation added;
    ``warnings`` are the assembler's about serialised tensor instructions; ``instructions`` are counts in the text
    (wgmma, tcgen05, mma, mfma, tma_load, async_copy, lds_copy, exp2) where they are not zero. ``seconds`` is what the
    compile took when it ran, ``cached`` whether that was before.
    """

    request: KernelRequest
    target: Target
    binary: Path
    text: Path
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    tensor_memory: int
    num_warps: int
    warnings: tuple[str, ...]
    instructions: Mapping[str, int]
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """A kernel that did not compile, with the compiler's words or how it ended."""

    request: KernelRequest
    target: Target
    reason: str


def compile_offline(
    requests: Iterable[KernelRequest],
    target: Target,
    *,
    timeout_s: float = 120.0,
    folder: Path | None = None,
    jobs: int = 1,
) -> list[Built | Failed]:
    """Compile kernels for ``target``, which need not be here; answers in the order of ``requests``.

    ``timeout_s`` bounds the seconds of one compile, ``folder`` is where binaries go (the user's cache), ``jobs`` is
    how many compile at a time. Raises MissingTritonError without Triton, CacheError where the folder cannot be
    written, OSError where a source cannot be read; all else is a Failed.
    """
    pairs = [(request, target) for request in requests]
    return compile_all(pairs, timeout_s=timeout_s, folder=folder, jobs=jobs)


def compile_all(
    requests: Iterable[tuple[KernelRequest, Target]],
    *,
    timeout_s: float = 120.0,
    folder: Path | None = None,
    jobs: int = 1,
    each: Callable[[Built | Failed], None] = lambda _: None,
) -> list[Built | Failed]:
    """``compile_offline`` with a target for every kernel; ``each`` hears of every answer, in the thread that has it."""
    version = _triton_version()
    todo = list(requests)
    results: list[Built | Failed | None] = [None] * len(todo)
    queue: SimpleQueue[int] = SimpleQueue()
    for index in range(len(todo)):
        queue.put(index)

    def work() -> None:
        with _Worker(timeout_s) as worker:
            while True:
                try:
                    index = queue.get_nowait()
                except Empty:
                    return
                result = results[index] = _compile(*todo[index], version, worker, folder)
                each(result)

    with ThreadPoolExecutor(max(1, min(jobs, len(todo)))) as pool:
        for done in [pool.submit(work) for _ in range(max(1, min(jobs, len(todo))))]:
            done.result()
    return [result for result in results if result is not None]


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingTritonError from error


class _RefusedError(Exception):
    """The compiler's answer is no: leaves no entry in the cache."""


def _compile(
    request: KernelRequest, target: Target, version: str, worker: _Worker, root: Path | None
) -> Built | Failed:
    backend = "cuda" if target.is_nvidia else "hip"

    def fill(folder: Path) -> None:
        answer = worker.ask(
            source=str(request.source.resolve()), kernel=request.kernel, signature=dict(request.signature),
            constexprs=dict(request.constexprs), aligned=sorted(request.aligned), num_warps=request.num_warps,
            num_stages=request.num_stages, backend=backend, arch=target.triton_arch, warp_size=target.warp_size,
            folder=str(folder),
        )  # fmt: skip
        (folder / "report.json").write_text(json.dumps(answer))

    key = cache.content_key(_FORMAT, request.key, target.name, version)
    try:
        folder, cached = cache.entry(f"{target.name}-{request.kernel}", key, fill, root)
    except _RefusedError as refused:
        return Failed(request, target, str(refused))
    report = json.loads((folder / "report.json").read_text())
    report["warnings"] = tuple(report["warnings"])
    binary, text = (folder / f"kernel.{suffix}" for suffix in FILES[backend])
    return Built(request, target, binary, text, **report, cached=cached)


@dataclass
class _Worker:
    """A compiler process that starts at the first question and again after it had to be stopped."""

    timeout_s: float
    _process: subprocess.Popen[bytes] | None = None
    _home: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="attncompiler-offline-")
    )
    _heard: int = 0

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._home.cleanup()

    def ask(self, **request: object) -> dict[str, object]:
        """The report on a request; raises _RefusedError with the reason."""
        process = self._process = self._process or self._start()
        self._heard = self._log.stat().st_size
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it died: reading tells how
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        line = self._read(process)
        if line is None:
            self._stop()
            raise _RefusedError(f"the compiler gave no answer in {self.timeout_s:g} s")
        if not line:
            status = process.wait()
            self._stop()
            end = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise _RefusedError(f"the compiler ended with {end}{self._noise()}")
        answer = json.loads(line)
        if "reason" in answer:
            raise _RefusedError(f"{answer['reason'][:2000]}{self._noise()}")
        report: dict[str, object] = answer["report"]
        return report

    def _start(self) -> subprocess.Popen[bytes]:
        # Not the interpreter, whatever the tests around us chose; a fresh cache, so that ptxas really runs and its
        # log (asked for here) tells of this binary.
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {
            "TRITON_CACHE_DIR": self._home.name,
            "TRITON_DUMP_PTXAS_LOG": "1",
            "TRITON_DEFAULT_FP_FUSION": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "attncompiler.runtime.offline_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # its assembler ends with it
            )

    def _read(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """One line of the answer, b"" at its end, None when there was none in time."""
        assert process.stdout is not None
        end, found = time.monotonic() + self.timeout_s, b""
        while not found.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                return None
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                return b""
            found += part
        return found

    @property
    def _log(self) -> Path:
        path = Path(self._home.name) / "stderr"
        path.touch()
        return path

    def _noise(self) -> str:
        """The end of what the compiler printed about the last request."""
        with self._log.open("rb") as log:
            log.seek(self._heard)
            text = log.read().decode(errors="replace").strip()
        return "\n" + "\n".join(text.splitlines()[-8:])[-1500:] if text else ""

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
