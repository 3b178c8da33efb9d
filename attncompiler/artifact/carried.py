"""Carries a variant's ordinary Python into a package: the source of ``prepare`` and ``sample`` and what they call.

The formulas of a variant become kernels; these two methods stay torch. Their source is copied word for word, with the
helper methods, functions, constants and imports they name. What cannot be copied so is refused, with the line.
"""

from __future__ import annotations

import ast
import builtins
import dis
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

from attncompiler.errors import AttnCompilerError
from attncompiler.ir.location import Location
from attncompiler.variant import Variant

_LITERALS = (bool, int, float, complex, str, bytes, type(None))
# Libraries whose functions a package may import.
_LIBRARIES = frozenset({"torch", *sys.stdlib_module_names})


class CarryError(AttnCompilerError):
    """Code of a variant that a package cannot carry."""

    message = "a package cannot carry {owner}: {detail}"
    advice = "{fix}"


@dataclass(frozen=True, slots=True)
class Carried:
    """Source for a module: import lines, constants, functions, and the attributes and methods of one class."""

    imports: list[str] = field(default_factory=list)
    constants: list[tuple[str, str]] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)


def carried(variant: Variant, slots: tuple[str, ...]) -> Carried:
    """The source of the methods ``slots`` of a variant and of everything they need. Raises CarryError."""
    return _Carrier(variant).run(slots)


class _Carrier:
    def __init__(self, variant: Variant) -> None:
        self.variant, self.cls = variant, type(variant)
        self.result = Carried()
        self.seen: dict[str, object] = {}
        self.members: set[str] = set()

    def run(self, slots: tuple[str, ...]) -> Carried:
        for slot in slots:
            self._member(slot, None)
        return self.result

    # -- the class ---------------------------------------------------------------------------------------------

    def _member(self, name: str, used: Location | None) -> None:
        """A method or a constant of the variant."""
        if name in self.members or name in self.cls._parameters:
            return
        self.members.add(name)
        found: Any = vars(self.variant).get(name, inspect.getattr_static(self.cls, name, _MISSING))
        owner = f"{self.cls.__name__}.{name}"
        if isinstance(found, staticmethod):
            found = found.__func__
        if isinstance(found, FunctionType):
            self.result.methods.append(self._function(found, owner, method=True))
        elif (text := _literal(found)) is not None:
            self.result.attributes.append((name, text))
        else:
            kind = "missing" if found is _MISSING else f"a {type(found).__name__}"
            self._refuse(owner, f"it is {kind}", "use numbers, strings and methods there", used)

    def _attributes(self, tree: ast.AST, function: FunctionType, owner: str) -> None:
        """Everything a method reads of ``self``."""
        arguments = next(n.args for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))
        if not (arguments.posonlyargs or arguments.args):
            return
        own = (arguments.posonlyargs + arguments.args)[0].arg
        known = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        ]
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name == own:
                    self._member(attribute, _place(function, node))
                case ast.Name(id=name) if name == own and node not in known:
                    self._refuse(
                        owner,
                        f"it hands {own} on as a whole",
                        f"pass what is needed of it, such as {own}.window",
                        _place(function, node),
                    )

    # -- functions ---------------------------------------------------------------------------------------------

    def _function(self, function: FunctionType, owner: str, *, method: bool = False) -> str:
        """The source of a function of the user's, after everything it names has been carried."""
        try:
            text = textwrap.dedent(inspect.getsource(function))
            tree = ast.parse(text)
        except (OSError, TypeError, SyntaxError):
            self._refuse(
                owner, "its source is not in a file", "write it in the variant's file", None
            )
        if not isinstance(tree.body[0], ast.FunctionDef):
            self._refuse(owner, "it is no def", "write it as a method or a function", None)
        names = set(_globals_of(function.__code__))
        node = tree.body[0]
        for part in (*node.args.defaults, *node.args.kw_defaults, *node.decorator_list):
            names |= {n.id for n in ast.walk(part) if isinstance(n, ast.Name)} if part else set()
        if set(function.__code__.co_freevars) - {"__class__"}:
            free = ", ".join(function.__code__.co_freevars)
            self._refuse(
                owner,
                f"it reads {free} of a function around it",
                "move it to the module",
                _place(function, node),
            )
        if method and not any(
            isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list
        ):
            self._attributes(tree, function, owner)
        if "super" in names and not owner.endswith(".sample"):
            self._refuse(
                owner, "it calls super()", "write the call out", _use(function, tree, "super")
            )
        for name in sorted(names):
            self._global(name, function, tree, owner)
        return text.rstrip()

    def _global(self, name: str, function: FunctionType, tree: ast.AST, owner: str) -> None:
        if name not in function.__globals__:
            if hasattr(builtins, name):
                return
            self._refuse(
                owner, f"{name} is not defined", "import it in the file", _use(function, tree, name)
            )
        value = function.__globals__[name]
        if name in self.seen:
            if self.seen[name] is not value:
                self._refuse(
                    owner,
                    f"{name} means two things in two files",
                    "rename one",
                    _use(function, tree, name),
                )
            return
        self.seen[name] = value
        if isinstance(value, ModuleType) and value.__name__.split(".")[0] in _LIBRARIES:
            self.result.imports.append(f"import {value.__name__} as {name}")
        elif (text := _literal(value)) is not None:
            self.result.constants.append((name, text))
        elif (found := _imported_from(value)) is not None:
            self.result.imports.append(f"from {found[0]} import {found[1]} as {name}")
        elif isinstance(value, FunctionType) and value.__module__.split(".")[0] != "attncompiler":
            self.result.functions.append(self._function(value, f"{owner}, which calls {name}"))
        else:
            module = getattr(value, "__module__", None) or getattr(value, "__name__", "")
            self._refuse(
                owner,
                f"it uses {name}, a {type(value).__name__}" + (f" of {module}" if module else ""),
                "a package has torch and Python's own modules only: use those, functions and numbers of the file",
                _use(function, tree, name),
            )

    def _refuse(self, owner: str, detail: str, fix: str, location: Location | None) -> NoReturn:
        raise CarryError(location=location, owner=owner, detail=detail, fix=fix)


_MISSING = object()


def _literal(value: object) -> str | None:
    """A constant as Python text."""
    if isinstance(value, tuple | list):
        parts = [_literal(x) for x in value]
        if None in parts:
            return None
        inner = ", ".join(map(str, parts))
        return (
            f"[{inner}]"
            if isinstance(value, list)
            else f"({inner}{',' if len(parts) == 1 else ''})"
        )
    if isinstance(value, float) and repr(value).lstrip("-") in ("inf", "nan"):
        return f'float("{value!r}")'
    return repr(value) if type(value) in _LITERALS else None


def _imported_from(value: object) -> tuple[str, str] | None:
    """The library's module and name under which a function, a class or a dtype is found again."""
    name = getattr(value, "__name__", None) or str(value).rpartition(".")[2]
    for module in (getattr(value, "__module__", None), "torch", "torch.nn.functional"):
        if not module or module.split(".")[0] not in _LIBRARIES:
            continue
        if getattr(importlib.import_module(module), name, _MISSING) is value:
            return module, name
    return None


def _globals_of(code: CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)


def _place(function: FunctionType, node: ast.AST) -> Location:
    """Where a node of a function's dedented source stands in its file."""
    lines, first = inspect.getsourcelines(function)
    indent = len(lines[0]) - len(lines[0].lstrip())
    line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
    same = getattr(node, "end_lineno", line) == line
    end = (getattr(node, "end_col_offset", None) or 0) if same else 0
    file = inspect.getsourcefile(function) or ""
    return Location(file, first + line - 1, column + indent, end + indent if end else 0)


def _use(function: FunctionType, tree: ast.AST, name: str) -> Location:
    """The first use of a name."""
    uses = (n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == name)
    return _place(function, next(uses, tree))
