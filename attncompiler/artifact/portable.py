"""Copies run-time modules of this package into another: the same files, whose imports of attncompiler become relative.

What is copied follows from the imports of a few roots, so there is no list to keep. A module is portable when all it
imports is portable, torch, or Python's own.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources

from attncompiler.errors import InternalError

PACKAGE = "attncompiler"


@dataclass(frozen=True, slots=True)
class Import:
    """One ``from attncompiler... import`` of a module: its line, the module it names, the modules it needs."""

    line: int
    target: str
    needs: tuple[str, ...]


def copied(
    roots: Iterable[str], libraries: frozenset[str] = frozenset({"torch"})
) -> dict[str, str]:
    """The text of each file by its path in the new package, for modules such as ``"runtime.packaged"``.

    ``libraries`` may be imported besides Python's own. Raises InternalError for a module that needs more.
    """
    found: dict[str, str] = {}
    queue = list(roots)
    while queue:
        module = queue.pop()
        path = f"{module.replace('.', '/')}.py"
        if path in found:
            continue
        text = _source(module)
        imports = list(_imports(module, text, libraries))
        queue += [need for found_import in imports for need in found_import.needs]
        found[path] = _relative(module, text, imports)
    for folder in {path.rpartition("/")[0] for path in found}:
        path = f"{folder}/__init__.py" if folder else "__init__.py"
        found[path] = (
            '"""Run-time modules of attncompiler, copied; only their imports were made relative."""\n'
        )
    return found


def _source(module: str) -> str:
    return resources.files(PACKAGE).joinpath(*_path(module)).read_text()


def _path(module: str) -> tuple[str, ...]:
    *folders, name = module.split(".")
    return (*folders, f"{name}.py")


def _is_module(name: str) -> bool:
    return bool(name) and resources.files(PACKAGE).joinpath(*_path(name)).is_file()


def _imports(module: str, text: str, libraries: frozenset[str]) -> Iterator[Import]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=aliases):
                tops = [alias.name.split(".")[0] for alias in aliases]
            case ast.ImportFrom(module=str(name), level=0) if name.split(".")[0] == PACKAGE:
                target = name.removeprefix(PACKAGE).removeprefix(".")
                inner = [f"{target}.{a.name}".lstrip(".") for a in node.names]
                needs = (target,) if _is_module(target) else tuple(inner)
                if not all(map(_is_module, needs)):
                    raise InternalError("portable", f"{module} imports {name}, which is no module")
                yield Import(node.lineno, target, needs)
                continue
            case ast.ImportFrom(module=str(name), level=0):
                tops = [name.split(".")[0]]
            case _:
                continue
        for top in tops:
            if top not in libraries and top not in sys.stdlib_module_names:
                raise InternalError("portable", f"{module} imports {top}: a package has no such")


def _relative(module: str, text: str, imports: Iterable[Import]) -> str:
    lines = text.splitlines(keepends=True)
    folders = module.split(".")[:-1]
    for found in imports:
        target = found.target.split(".") if found.target else []
        shared = 0
        while shared < min(len(folders), len(target)) and folders[shared] == target[shared]:
            shared += 1
        dots = "." * (len(folders) - shared + 1)
        line = lines[found.line - 1]
        old = f"from {'.'.join([PACKAGE, *target])} import"
        lines[found.line - 1] = line.replace(old, f"from {dots}{'.'.join(target[shared:])} import")
    return "".join(lines)
