"""Finds where in the user's own file the running expression stands: frames of this package and of torch are skipped."""

from __future__ import annotations

import ast
import inspect
import linecache
import os
import sys
from itertools import islice
from types import CodeType, FrameType, TracebackType

from attncompiler.ir.location import Location

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_COMMANDS = _PACKAGE + "commands" + os.sep


def user_location(boundary: CodeType | None = None) -> Location | None:
    """The innermost frame outside this package.

    None when the frame of code ``boundary`` or of a command comes first: then no line of the user asked for it.
    """
    torch = sys.modules.get("torch")
    skipped = (_PACKAGE, os.path.dirname(torch.__file__ or "") + os.sep if torch else _PACKAGE)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is boundary or frame.f_code.co_filename.startswith(_COMMANDS):
            return None
        # A dataclass's __init__ has no file, but the globals of its module.
        ours = frame.f_globals.get("__name__", "").startswith(f"{__package__}.")
        if not ours and not frame.f_code.co_filename.startswith(skipped):
            return _location(frame)
        frame = frame.f_back
    return None


def raised_at(filename: str, trace: TracebackType | None) -> Location | None:
    """The innermost expression of one file on the way to an exception; None when the file is not on it."""
    found = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            found = trace
        trace = trace.tb_next
    return None if found is None else _location(found.tb_frame, found.tb_lineno, found.tb_lasti)


def _location(frame: FrameType, line: int = 0, instruction: int = -1) -> Location:
    """Where a frame stands, or stood when an exception passed through it."""
    code = frame.f_code
    line = line or frame.f_lineno
    at = frame.f_lasti if instruction < 0 else instruction
    first, last, start, end = next(
        islice(code.co_positions(), at // 2, None), (line, line, None, None)
    )
    if start is None or end is None:
        return Location(code.co_filename, line)
    text = linecache.getline(code.co_filename, first or line)
    # Python counts bytes; a span that goes on over the next lines is shown to the end of its first one.
    column = len(text.encode()[:start].decode(errors="ignore"))
    stop = len(text.encode()[:end].decode(errors="ignore")) if last == first else len(text.rstrip())
    return Location(code.co_filename, first or line, column, max(stop, column + 1))


def condition_at(location: Location) -> str:
    """What asked for the truth of the expression there: ``if``, ``and``, ``chain``, ``max`` ...; "" if unclear."""
    try:
        tree = ast.parse("".join(linecache.getlines(location.filename)))
    except SyntaxError:
        return ""
    found = ""
    for node in ast.walk(tree):  # breadth first: the innermost construct is seen last
        if _covers(node, location):
            found = _construct(node) or found
    return found


def _covers(node: ast.AST, location: Location) -> bool:
    test: ast.AST = getattr(node, "test", node)
    if not isinstance(test, ast.expr):
        return False
    first = (test.lineno, test.col_offset if location.end_column else 0)
    last = (test.end_lineno or test.lineno, test.end_col_offset or 0)
    return first <= (location.line, location.column) < last


def _construct(node: ast.AST) -> str:
    match node:
        case ast.If() | ast.IfExp():
            return "if"
        case ast.While():
            return "while"
        case ast.Assert():
            return "assert"
        case ast.BoolOp(op=ast.And()):
            return "and"
        case ast.BoolOp(op=ast.Or()):
            return "or"
        case ast.UnaryOp(op=ast.Not()):
            return "not"
        case ast.Compare(ops=ops) if len(ops) > 1:
            return "chain"
        case ast.Call(func=ast.Name(id="max" | "min" | "any" | "all" as name)):
            return name
        case _:
            return ""


def class_location(cls: type) -> Location | None:
    """The ``class`` line of a class; None when it has no file."""
    try:
        file, (lines, first) = inspect.getsourcefile(cls), inspect.getsourcelines(cls)
    except (OSError, TypeError):  # made at a prompt
        return None
    return None if file is None else Location(file, first, 0, len(lines[0].rstrip()))


def attribute_location(cls: type, name: str) -> Location | None:
    """Where the body of a class that is being defined sets ``name``; its ``class`` line when it does not."""
    here = user_location()
    if here is None:
        return None
    try:
        tree = ast.parse("".join(linecache.getlines(here.filename)))
    except SyntaxError:
        return here
    body = _find_class(tree, "", cls.__qualname__)
    for node in body.body if body is not None else ():
        if name in _defined(node):
            end = len(linecache.getline(here.filename, node.lineno).rstrip())
            return Location(here.filename, node.lineno, node.col_offset, end)
    return here


def _find_class(node: ast.AST, prefix: str, qualname: str) -> ast.ClassDef | None:
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, ast.ClassDef):
            if prefix + child.name == qualname:
                return child
            inner = f"{prefix}{child.name}."
        elif isinstance(child, ast.FunctionDef):
            inner = f"{prefix}{child.name}.<locals>."
        found = _find_class(child, inner, qualname)
        if found is not None:
            return found
    return None


def _defined(node: ast.stmt) -> tuple[str, ...]:
    match node:
        case ast.FunctionDef(name=name):
            return (name,)
        case ast.AnnAssign(target=ast.Name(id=name)):
            return (name,)
        case ast.Assign(targets=targets):
            return tuple(t.id for t in targets if isinstance(t, ast.Name))
        case _:
            return ()
