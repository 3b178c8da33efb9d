"""Picks from ``templates/<language>/math.py`` the functions that a GPU kernel calls, to be printed into its file."""

from __future__ import annotations

import ast
from functools import cache
from importlib import resources


def math_for(source: str, language: str = "triton") -> str:
    """The text of the functions that ``source`` calls, directly or through each other, in the order of the file.

    ``source`` is the Python text of kernels and device functions. Each function comes with its decorator, two empty
    lines apart; the result ends with a newline, and is empty when nothing is called.
    """
    functions = _functions(language)
    needed: set[str] = set()
    found = _called(ast.parse(source)) & functions.keys()
    while found:
        name = found.pop()
        needed.add(name)
        found |= functions[name][1] - needed
    texts = [text for name, (text, _) in functions.items() if name in needed]
    return "\n\n\n".join(texts) + "\n" if texts else ""


@cache
def _functions(language: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Every function of the file by name: its text, and those of the others that it calls."""
    file = resources.files(f"attncompiler.templates.{language}") / "math.py"
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    names = {node.name for node in nodes}
    return {
        node.name: (
            "\n".join(lines[_first(node) : node.end_lineno]),
            frozenset(_called(node) & names - {node.name}),
        )
        for node in nodes
    }


def _first(node: ast.FunctionDef) -> int:
    """The index of a function's first line, that of a decorator where there is one."""
    return min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1


def _called(tree: ast.AST) -> set[str]:
    """The plain names that are called in a piece of code; ``tl.maximum`` is not one."""
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
