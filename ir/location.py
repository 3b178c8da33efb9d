"""Where in the user's file an expression was written: a file, a line and, where Python knows it, columns."""

from __future__ import annotations

import linecache
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """A span of one source line.

    ``line`` counts from 1; ``column`` and ``end_column`` count characters from 0. An ``end_column`` of 0
    means that only the line is known (Python before 3.11).
    """

    filename: str
    line: int
    column: int = 0
    end_column: int = 0

    def __str__(self) -> str:
        return f"{self.filename}:{self.line}"

    def excerpt(self) -> str:
        """The source line with a caret line below it; empty when the file cannot be read."""
        text = linecache.getline(self.filename, self.line).rstrip("\n")
        if not text.strip():
            return ""
        indent = len(text) - len(text.lstrip())
        start = self.column if self.end_column else indent
        width = max(1, (self.end_column or len(text)) - start)
        return f"{text}\n{' ' * start}{'^' * width}"
