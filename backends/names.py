"""Names in generated code: parts of identifiers for whatever the IR calls things."""

from __future__ import annotations

import re


def identifier(name: str) -> str:
    """A part of an identifier for any name the IR uses; distinct names stay distinct."""
    return re.sub(r"[^A-Za-z0-9]", lambda m: f"_{ord(m[0]):x}_" if m[0] != "_" else "_", name)


def tensor_name(name: str) -> str:
    """What a captured tensor is called in a kernel."""
    return f"t_{identifier(name)}"
