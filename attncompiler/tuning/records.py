"""Keeps what tuning found, in the user's cache: a folder for each kernel, in it a file for each class of calls.

The folder's name is a hash of everything that decides which machine code a schedule becomes: the kernel's own source
(so every option of code generation counts), the compiler with its flags, and the device. A file holds the winner and
every trial; it is replaced as a whole, so that readers and writers in several processes never see half of one, and a
tuning that was interrupted goes on from its trials.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attncompiler.runtime.cache import cache_folder
from attncompiler.runtime.errors import CacheError

VERSION = 1
FOLDER = "tuned"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one class of calls.

    ``bucket`` are the fields of that class. ``choice`` are the fields of the winning schedule, empty while the search
    is not complete; ``ratio`` is its time over that of the default, ``seconds`` its time for one call. ``trials`` are
    the fields of all measured schedules with their ratios. ``call`` says which call was measured, in words.
    """

    bucket: dict[str, Any]
    choice: dict[str, Any]
    ratio: float
    seconds: float
    trials: tuple[tuple[dict[str, Any], float], ...]
    call: str

    @property
    def complete(self) -> bool:
        """Whether the search came to its end."""
        return bool(self.choice)


def folder_of(name: str, key: str, root: Path | None = None) -> Path:
    """Where the records of a kernel are: ``name`` is readable, ``key`` tells kernels apart."""
    return (root or cache_folder()) / FOLDER / f"{name.lower()}-{key}"


def read(folder: Path, bucket: str) -> Record | None:
    """The record of a class of calls; None where there is none that can be read, or one of another version."""
    try:
        data = json.loads((folder / f"{bucket}.json").read_text(encoding="utf-8"))
        if data.pop("version") != VERSION:
            return None
        trials = tuple((dict(fields), float(ratio)) for fields, ratio in data.pop("trials"))
        return Record(**data, trials=trials)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(folder: Path, bucket: str, record: Record) -> None:
    """Put a record in its place, whole. Raises CacheError where the cache cannot be written."""
    text = json.dumps({"version": VERSION, **asdict(record)}, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(part).replace(folder / f"{bucket}.json")
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CacheError(folder=folder, reason=error.strerror or error) from error


def records(folder: Path) -> Iterator[tuple[str, Record]]:
    """Every complete record of a kernel, by the name of its class of calls."""
    for path in sorted(folder.glob("*.json")):
        found = read(folder, path.stem)
        if found is not None and found.complete:
            yield path.stem, found


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """While the body runs, no other process of this user that tunes measures: two at once would see each other.

    Where the system has no such locks, or the cache cannot be written, the body just runs.
    """
    try:
        import fcntl

        folder = cache_folder() / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".measuring").open("w")
    except (ImportError, OSError):
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
