"""Names in generated code: parts of identifiers for whatever the IR calls things."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from attncompiler.ir.expr import Call, Expr, Load, children, walk


def identifier(name: str) -> str:
    """A part of an identifier for any name the IR uses; distinct names stay distinct."""
    return re.sub(r"[^A-Za-z0-9]", lambda m: f"_{ord(m[0]):x}_" if m[0] != "_" else "_", name)


def tensor_name(name: str) -> str:
    """What a captured tensor is called in a kernel."""
    return f"t_{identifier(name)}"


def repeated(roots: list[Expr], later: list[Expr]) -> Iterator[Expr]:
    """The calls and loads of the roots that are used more than once, there or in expressions printed ``later``."""
    both = [*roots, *later]
    uses = Counter(child for node in walk(*both) for child in children(node))
    uses.update(both)
    return (n for n in walk(*roots) if uses[n] > 1 and isinstance(n, (Call, Load)))
