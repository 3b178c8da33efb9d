"""Maps a build's content to files in the user's cache, written whole or not at all.

An entry is a folder named by a hash of everything that decides its content. It is filled under a temporary name
and renamed into place, so a reader never sees half of it and two processes that build the same entry both succeed.
An entry that no longer holds what was written (a failing disk, a deleted file) is built again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from attncompiler.runtime.errors import CacheError

# Name of the file in every entry that lists the hashes of the others.
SUMS = "SHA256SUMS"


def cache_folder() -> Path:
    """``$ATTNCOMPILER_CACHE``, or ``attncompiler`` under ``$XDG_CACHE_HOME`` (``~/.cache``)."""
    chosen = os.environ.get("ATTNCOMPILER_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "attncompiler"


def content_key(*parts: str) -> str:
    """A hash of the parts and of their boundaries."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:24]


def entry(
    name: str, key: str, fill: Callable[[Path], None], root: Path | None = None
) -> tuple[Path, bool]:
    """The folder of an entry, made by ``fill(folder)`` when it is missing or damaged, and whether it was there.

    ``name`` is a readable prefix of the folder's name, ``root`` the folder it is in (the user's cache). What ``fill``
    raises passes through and leaves no entry; a cache that cannot be written is a CacheError. A finished entry is read
    from a read-only cache without complaint.
    """
    folder = (root or cache_folder()) / f"{name}-{key}"
    if _intact(folder):
        return folder, True
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _drop_abandoned(folder.parent)
        part = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    except OSError as error:
        raise CacheError(folder=folder.parent, reason=error.strerror or error) from error
    try:
        fill(part)
        (part / SUMS).write_text(_sums(part))
        _publish(part, folder)
    except OSError as error:  # no space left, or the folder vanished
        raise CacheError(folder=folder.parent, reason=error.strerror or error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder, False


def _publish(part: Path, folder: Path) -> None:
    for _ in range(3):
        try:
            part.rename(folder)
            return
        except OSError:
            if _intact(folder):  # another process was first: its entry has the same content
                return
            # A damaged entry steps aside; libraries that are loaded from it stay mapped.
            aside = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder.parent))
            with suppress(OSError):
                folder.rename(aside / folder.name)
            shutil.rmtree(aside, ignore_errors=True)
    part.rename(folder)


def _intact(folder: Path) -> bool:
    """Whether an entry holds exactly what was written; reading it takes a fraction of a millisecond."""
    try:
        return (folder / SUMS).read_text() == _sums(folder)
    except OSError:
        return False


def _sums(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.name != SUMS)
    return "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files)


def _drop_abandoned(root: Path) -> None:
    """Remove what builds that were killed left behind more than a day ago."""
    for part in root.glob(".*-*"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > 86400:
                shutil.rmtree(part, ignore_errors=True)


def entries() -> Iterator[Path]:
    """The folders of all finished entries, newest first."""
    root = cache_folder()
    if root.is_dir():
        found = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
        yield from sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)
