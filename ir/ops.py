"""The operators of scalar expressions: arity, result kind and how each is written in text.

This table is the one list of what a formula may contain. A new operator needs a row here, a torch function in
``ir/interpreter.py`` and a spelling in each backend; the tests compare the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attncompiler.ir.declared import Kind as Kind

Rule = Literal["float", "int", "bool", "numeric", "compare", "logic", "where", "same"]


@dataclass(frozen=True, slots=True)
class Op:
    """One operator.

    ``rule`` says how kinds combine: ``float``/``int`` take and give that kind; ``numeric`` takes two numbers of
    one kind and gives it; ``same`` is its one-argument form; ``compare`` takes two of one kind and gives bool;
    ``logic`` takes and gives bool; ``where`` takes a bool and two of one kind.
    """

    name: str
    arity: int
    rule: Rule
    infix: str = ""


def _table(*ops: Op) -> dict[str, Op]:
    return {op.name: op for op in ops}


OPS: dict[str, Op] = _table(
    Op("add", 2, "numeric", "+"),
    Op("sub", 2, "numeric", "-"),
    Op("mul", 2, "numeric", "*"),
    Op("div", 2, "float", "/"),
    Op("floordiv", 2, "numeric", "//"),
    Op("mod", 2, "numeric", "%"),
    Op("neg", 1, "same", "-"),
    Op("abs", 1, "same"),
    Op("min", 2, "numeric"),
    Op("max", 2, "numeric"),
    Op("sign", 1, "same"),
    Op("pow", 2, "float", "**"),
    *(Op(name, 1, "float") for name in ("exp", "exp2", "expm1", "log", "log2", "log1p")),
    *(Op(name, 1, "float") for name in ("sqrt", "rsqrt", "tanh", "sigmoid", "erf", "sin", "cos")),
    *(Op(name, 1, "float") for name in ("floor", "ceil", "trunc", "round")),
    Op("eq", 2, "compare", "=="),
    Op("ne", 2, "compare", "!="),
    Op("lt", 2, "compare", "<"),
    Op("le", 2, "compare", "<="),
    Op("gt", 2, "compare", ">"),
    Op("ge", 2, "compare", ">="),
    Op("and", 2, "logic", "and"),
    Op("or", 2, "logic", "or"),
    Op("not", 1, "logic", "not"),
    Op("bitand", 2, "int", "&"),
    Op("bitor", 2, "int", "|"),
    Op("bitxor", 2, "int", "^"),
    Op("shl", 2, "int", "<<"),
    Op("shr", 2, "int", ">>"),
    Op("bit_length", 1, "int"),
    Op("where", 3, "where"),
    Op("to_float", 1, "float"),
    Op("to_int", 1, "int"),
    Op("to_bool", 1, "bool"),
)

CONVERSIONS = frozenset({"to_float", "to_int", "to_bool"})
