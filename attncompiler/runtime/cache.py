"""Maps a build's content to files in the user's cache, written whole or not at all.

An entry is a folder named by a hash of everything that decides its content. It is filled under a temporary name
and renamed into place, so a reader never sees half of it and two processes that build the same entry both succeed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


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


def entry(name: str, key: str, fill: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder of an entry, made by ``fill(folder)`` when it is missing, and whether it was there.

    ``name`` is a readable prefix of the folder's name. What ``fill`` raises passes through and leaves no entry.
    """
    folder = cache_folder() / f"{name}-{key}"
    if folder.is_dir():
        return folder, True
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        fill(part)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first: its entry has the same content
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder, False


def entries() -> Iterator[Path]:
    """The folders of all finished entries, newest first."""
    root = cache_folder()
    if root.is_dir():
        found = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
        yield from sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)
