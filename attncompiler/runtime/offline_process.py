"""Asks a compiler in a process of its own: one line of JSON each way, answers that fail or do not come are reasons."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from attncompiler.backends.gpu_targets import Target
from attncompiler.runtime.offline_records import Built, KernelRequest, Lowered


class RefusedError(Exception):
    """The compiler's answer is no: leaves no entry in the cache."""


@dataclass(frozen=True, slots=True)
class OfflineCompiler:
    """The compiler of one language: the module that its process runs, and its version, part of the cache's key.

    ``question`` is what the process is asked, but for the folder that it fills; ``answer`` reads that folder.
    """

    module: str
    version: Callable[[], str]
    question: Callable[[KernelRequest, Target], dict[str, object]]
    answer: Callable[[KernelRequest, Target, Path, bool], Built | Lowered]


@dataclass
class Worker:
    """A compiler process that starts at the first question and again after it had to be stopped."""

    module: str
    timeout_s: float
    _process: subprocess.Popen[bytes] | None = None
    _home: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="attncompiler-offline-")
    )
    _heard: int = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._home.cleanup()

    def ask(self, **request: object) -> dict[str, object]:
        """The report on a request; raises RefusedError with the reason."""
        process = self._process = self._process or self._start()
        self._heard = self._log.stat().st_size
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it died: reading tells how
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        line = self._read(process)
        if line is None:
            self._stop()
            raise RefusedError(f"the compiler gave no answer in {self.timeout_s:g} s")
        if not line:
            status = process.wait()
            self._stop()
            end = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise RefusedError(f"the compiler ended with {end}{self._noise()}")
        answer = json.loads(line)
        if "reason" in answer:
            raise RefusedError(f"{answer['reason'][:2000]}{self._noise()}")
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
            "TILELANG_CACHE_DIR": self._home.name,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", self.module],
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
