"""Puts a package's files into a folder: whole or not at all, and never over something else."""

from __future__ import annotations

import json
import keyword
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from attncompiler.variant_file import UsageError

MANIFEST = "manifest.json"


class PackageNameError(UsageError):
    """A folder whose name cannot be imported."""

    message = "{name!r} is no name of a Python package"
    advice = "choose letters, digits and underscores: --out {fix}"


class FolderTakenError(UsageError):
    """A folder that holds something else than a package of ours."""

    message = "{folder} holds {what}, which attncompiler build did not write"
    advice = "choose another folder, or move that away"


def check_folder(folder: Path) -> None:
    """Raise PackageNameError or FolderTakenError when a package cannot be written to ``folder``."""
    name = folder.resolve().name
    if not name.isidentifier() or keyword.iskeyword(name) or name in ("attncompiler", "torch"):
        letters = "".join(c if c.isalnum() else "_" for c in name).strip("_") or "kernel"
        raise PackageNameError(name=name, fix=letters if letters.isidentifier() else f"k_{letters}")
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise FolderTakenError(folder=folder, what="a file")
    ours = _written(folder)
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_dir() or "__pycache__" in inside.parts or inside.as_posix() in ours:
            continue
        raise FolderTakenError(folder=folder, what=inside)


def _written(folder: Path) -> set[str]:
    """The files that the manifest in a folder lists."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return {MANIFEST, *manifest["files"]} if "attncompiler" in manifest else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def publish(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write the package beside ``folder``, then put it in its place: a stop half-way leaves the old one, or none.

    Raises what ``check_folder`` raises, and OSError.
    """
    check_folder(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as room:
        new, old = Path(room) / "new", Path(room) / "old"
        for path, content in files.items():
            target = new / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
