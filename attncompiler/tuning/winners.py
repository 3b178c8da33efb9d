"""Chooses the schedule of a C++ kernel for a call: that of a record made for its class, or none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from attncompiler.backends.cpp_cut import Schedule
from attncompiler.runtime.cache import content_key
from attncompiler.runtime.situation import Bucket, Situation
from attncompiler.runtime.toolchain import Toolchain
from attncompiler.tuning.records import Record, folder_of, read, records, write


def key_of(source: str, toolchain: Toolchain) -> str:
    """What records of a kernel are kept under: a hash of its code with its usual schedule, the compiler and processor.

    What stands above the code (the definition as it was typed, the command) does not count.
    """
    return content_key(re.sub(r"\A(//.*\n)+", "", source), toolchain.key)


class Winners:
    """The records of one kernel, whose source with the usual schedule is ``source``."""

    def __init__(self, name: str, source: str, toolchain: Toolchain) -> None:
        self.folder: Path = folder_of(name, key_of(source, toolchain))

    def find(self, situation: Situation, density: Callable[[], float]) -> Schedule | None:
        """The schedule of a record for calls like this one, or None: take the usual one.

        ``density()`` gives the share of pairs in visited tiles; it is asked only where there are records at all.
        """
        if not self.folder.is_dir():
            return None
        record = self.record(situation.bucket(density()))
        return Schedule(**record.choice) if record is not None and record.complete else None

    def record(self, bucket: Bucket) -> Record | None:
        """What is known of a class of calls."""
        return read(self.folder, str(bucket))

    def all(self) -> Iterator[tuple[Bucket, Record]]:
        """Every class of calls with a complete record."""
        for name, record in records(self.folder):
            bucket = Bucket(**record.bucket)
            if str(bucket) == name:
                yield bucket, record

    def keep(self, bucket: Bucket, record: Record) -> None:
        """Write a record. Raises CacheError."""
        write(self.folder, str(bucket), record)
