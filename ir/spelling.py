"""Turns names and operators into words of the text form; ``ir/printer.py`` and ``ir/parser.py`` share it.

A name is written plainly unless it could be taken for something else: a reserved word, or a
parameter and a statistic of one name. Then it is quoted after a word that says what it is:
``param'k'``, ``stat'm'``.
"""

from __future__ import annotations

from collections.abc import Iterable

from attncompiler.ir.ops import OPS

AXES = ("b", "h", "g", "q", "k", "d")
SIZES = ("B", "H", "G", "M", "N", "D", "Dv")
LITERALS = ("true", "false", "inf", "nan")
SLOTS = ("score", "mask", "weight", "output")
STATEMENTS = ("program", "param", "tensor", "scale", "let", "keep")
LEAVES = ("dot", "score", "value", "out_grad", "weight_grad", "old", "stat", "local")
FUNCTIONS = tuple(op.name for op in OPS.values() if not op.infix)
INFIX = {op.infix: op.name for op in OPS.values() if op.infix and op.arity == 2}
RESERVED = frozenset(
    (*AXES, *SIZES, *LITERALS, *SLOTS, *STATEMENTS, *LEAVES, *FUNCTIONS, "and", "or", "not", "sum")
)

# How tightly an operator binds; what binds tighter needs no parentheses inside.
BINDING: dict[str, int] = {
    "or": 1,
    "and": 2,
    "not": 3,
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), 4),
    "bitor": 5,
    "bitxor": 6,
    "bitand": 7,
    **dict.fromkeys(("shl", "shr"), 8),
    **dict.fromkeys(("add", "sub"), 9),
    **dict.fromkeys(("mul", "div", "floordiv", "mod"), 10),
    "neg": 11,
    "pow": 12,
}
ATOM = 13
COMPARISON = 4


def is_plain(name: str) -> bool:
    """Whether a name can stand by itself as a word."""
    return name.isascii() and name.isidentifier()


def declared(name: str) -> str:
    """A name where only a name can stand: a declaration, a kept statistic, an axis."""
    return name if is_plain(name) else quoted(name)


def quoted(name: str) -> str:
    """A name in single quotes, with quotes, backslashes and line ends escaped."""
    escaped = name.encode("unicode_escape").decode("ascii").replace("'", "\\'")
    return f"'{escaped}'"


def unquoted(text: str) -> str:
    """The name that ``quoted`` wrote."""
    inner = text[1:-1].replace("\\'", "'")
    return inner.encode("ascii").decode("unicode_escape")


def spell(name: str, what: str, clashing: Iterable[str]) -> str:
    """A name inside an expression; ``what`` (param, stat, local) goes before it when it is unclear."""
    plain = is_plain(name) and name not in RESERVED and name not in clashing
    return name if plain else f"{what}{quoted(name)}"
