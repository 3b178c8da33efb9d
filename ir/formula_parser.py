"""Turns one line of the text form into tokens and its formulas into expressions.

Operators are read by precedence climbing with the table of ``ir/spelling.py``. A name that is no
parameter and no ``let`` is a statistic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast, get_args

from attncompiler.ir.expr import (
    Axis,
    Call,
    Const,
    Dot,
    Expr,
    Index,
    Load,
    OldStat,
    Param,
    Score,
    Size,
    SizeName,
    Stat,
    Value,
)
from attncompiler.ir.ops import Kind
from attncompiler.ir.spelling import AXES, BINDING, FUNCTIONS, INFIX, SIZES, is_plain, unquoted

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<quoted>(?:param|stat|local)?'(?:[^'\\]|\\.)*')
    |(?P<number>\d+(?:\.\d*)?(?:e[+-]?\d+)?)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<sign>//|\*\*|<<|>>|<=|>=|==|!=|[-+*/%&|^<>()\[\],:=])
    )""",
    re.VERBOSE | re.ASCII,
)
_LEAVES: dict[str, Expr] = {
    "true": Const(True),
    "false": Const(False),
    "inf": Const(float("inf")),
    "nan": Const(float("nan")),
    "dot": Dot(),
    "score": Score(),
    "value": Value(),
    **{axis: Index(cast(Axis, axis)) for axis in AXES},
    **{size: Size(cast(SizeName, size)) for size in SIZES},
}


class ParseError(Exception):
    """Text that is not a program, with its line."""

    def __init__(self, line: str, problem: str) -> None:
        """``line``: the text at fault."""
        super().__init__(f"{problem} in: {line.strip()}")


@dataclass(slots=True)
class Line:
    """The tokens of one line and the names known before it."""

    text: str
    params: Mapping[str, Kind]
    tensors: Mapping[str, Kind]
    lets: Mapping[str, Expr]
    tokens: list[str] = field(init=False)
    at: int = 0

    def __post_init__(self) -> None:
        """Split the text into tokens."""
        self.tokens, end = [], 0
        text = self.text.rstrip()
        while end < len(text):
            found = _TOKEN.match(text, end)
            if found is None:
                raise ParseError(text, f"unexpected {text[end:]!r}")
            self.tokens.append(found[0].strip())
            end = found.end()

    def peek(self, ahead: int = 0) -> str:
        """A token that comes, without taking it; empty at the end."""
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else ""

    def next(self) -> str:
        """Take a token; empty at the end."""
        self.at += 1
        return self.peek(-1)

    def accept(self, *texts: str) -> bool:
        """Take the next token if it is one of these."""
        if self.peek() in texts and self.peek():
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Take this token, or raise ParseError."""
        if self.next() != text:
            raise ParseError(self.text, f"expected {text!r}, found {self.peek(-1) or 'the end'!r}")

    def end(self) -> None:
        """Nothing may follow."""
        self.expect("")

    def name(self) -> str:
        """A plain or quoted name."""
        token = self.next()
        if token.endswith("'"):
            return unquoted(token[token.index("'") :])
        if not is_plain(token):
            raise ParseError(self.text, f"expected a name, found {token or 'the end'!r}")
        return token

    def kind(self) -> Kind:
        """A colon and a kind."""
        self.expect(":")
        token = self.next()
        if token not in get_args(Kind):
            raise ParseError(self.text, f"{token!r} is no kind")
        return cast(Kind, token)

    def items(self, close: str) -> list[Expr]:
        """Expressions with commas between them, up to the closing bracket."""
        found: list[Expr] = []
        while not self.accept(close):
            found.append(self.expression())
            if self.peek() != close:
                self.expect(",")
        return found

    def expression(self, binding: int = 0) -> Expr:
        """An expression of operators that bind at least this tightly."""
        left = self.prefix()
        while True:
            op = INFIX.get(self.peek())
            if op is None or BINDING[op] < binding:
                return left
            self.next()
            right = self.expression(BINDING[op] + 1)
            left = self.call(op, (left, right))

    def call(self, op: str, args: tuple[Expr, ...]) -> Expr:
        """An operator applied; ParseError where the kinds do not fit."""
        try:
            return Call(op, args)
        except TypeError as error:
            raise ParseError(self.text, str(error)) from error

    def prefix(self) -> Expr:
        """An operand with its signs; a sign before a number belongs to it."""
        if self.accept("not"):
            return self.call("not", (self.expression(BINDING["not"]),))
        if self.accept("-"):
            if self.peek()[:1].isdigit() or self.peek() == "inf":
                value = cast(Const, self.atom()).value
                return Const(-value)
            return self.call("neg", (self.expression(BINDING["neg"]),))
        return self.atom()

    def atom(self) -> Expr:
        """A number, name, load, function or parenthesis."""
        token = self.next()
        if token == "(":
            inner = self.expression()
            self.expect(")")
            return inner
        if token[:1].isdigit():
            return Const(int(token) if token.isdecimal() else float(token))
        if not (token.endswith("'") or is_plain(token)):
            raise ParseError(self.text, f"unexpected {token or 'end'!r}")
        if self.peek() == "[":
            self.at -= 1
            return self.load(self.name())
        if token in FUNCTIONS or token == "old":
            self.expect("(")
            args = tuple(self.items(")"))
            if token == "old":
                match args:
                    case (Stat(name),):
                        return OldStat(name)
                    case _:
                        raise ParseError(self.text, "old() takes a statistic")
            return self.call(token, args)
        return self.leaf(token)

    def load(self, tensor: str) -> Expr:
        """The indices of a tensor, in brackets."""
        self.expect("[")
        if tensor not in self.tensors:
            raise ParseError(self.text, f"no tensor {tensor!r} is declared")
        return Load(tensor, tuple(self.items("]")), self.tensors[tensor])

    def leaf(self, token: str) -> Expr:
        """What a name stands for."""
        if token in _LEAVES:
            return _LEAVES[token]
        if token in self.lets:
            return self.lets[token]
        name = unquoted(token[token.index("'") :]) if token.endswith("'") else token
        if token.startswith("param'") or (token == name and name in self.params):
            if name not in self.params:
                raise ParseError(self.text, f"no parameter {name!r} is declared")
            return Param(name, self.params[name])
        return Stat(name)
