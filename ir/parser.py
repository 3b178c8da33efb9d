"""Turns the text that ``ir/printer.py`` writes back into an equal Program.

Kinds come from the declarations, so these stand first. The text form is described in ``ir/printer.py``,
quoted names in ``ir/spelling.py``; formulas are read by ``ir/formula_parser.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast, get_args

from attncompiler.ir.expr import Const, Expr
from attncompiler.ir.formula_parser import Line, ParseError
from attncompiler.ir.ops import Kind
from attncompiler.ir.program import (
    IMPLICIT_PARAMS,
    ParamDecl,
    Program,
    ReduceOp,
    Reduction,
    TensorDecl,
)
from attncompiler.ir.spelling import SLOTS


def parse_expression(
    text: str, params: Mapping[str, Kind] | None = None, tensors: Mapping[str, Kind] | None = None
) -> Expr:
    """One expression; ``params`` and ``tensors`` give the kinds of the names it uses."""
    line = Line(text, params or {}, tensors or {}, {})
    found = line.expression()
    line.end()
    return found


def parse_program(text: str) -> Program:
    """The program that ``print_program`` wrote as ``text``. Raises ParseError."""
    program = Program("")
    lets: dict[str, Expr] = {}
    for source in filter(str.strip, text.splitlines()):
        params = IMPLICIT_PARAMS | {p.name: p.kind for p in program.params}
        line = Line(source, params, {t.name: t.kind for t in program.tensors}, lets)
        if line.peek() == "let":
            line.next()
            name = line.name()
            line.expect("=")
            lets[name] = line.expression()
        elif line.peek(1) == "=":
            program = _definition(line, program)
        else:
            program = _declaration(line, program)
        line.end()
    return program


def _declaration(line: Line, program: Program) -> Program:
    match line.next():
        case "program":
            return replace(program, name=line.name())
        case "param":
            name, kind = line.name(), line.kind()
            param = ParamDecl(name, kind, line.accept("lifted"))
            return replace(program, params=(*program.params, param))
        case "tensor":
            return replace(program, tensors=(*program.tensors, _tensor(line)))
        case "keep":
            name = line.name()
            line.expect("=")
            return replace(program, kept=(*program.kept, (name, line.expression())))
        case other:
            raise ParseError(line.text, f"unknown statement {other!r}")


def _tensor(line: Line) -> TensorDecl:
    name, axes = line.name(), list[str | int]()
    line.expect("[")
    while not line.accept("]"):
        axes.append(int(line.next()) if line.peek().isdecimal() else line.name())
        if line.peek() != "]":
            line.expect(",")
    return TensorDecl(name, tuple(axes), line.kind())


def _definition(line: Line, program: Program) -> Program:
    slot, name = line.peek(), line.name()
    line.expect("=")
    if slot == "scale":
        line.expect("scale")
        line.expect("*")
        return replace(program, dot_factor=cast(Const, line.prefix()).value)
    if slot in SLOTS:
        return _slot(program, slot, line.expression())
    op = line.next()
    line.expect("(")
    reduction = Reduction(name, _reduce_op(line, op.removesuffix("_d")), line.expression())
    line.expect(")")
    if op.endswith("_d"):
        return replace(program, output_reductions=(*program.output_reductions, reduction))
    return replace(program, reductions=(*program.reductions, reduction))


def _reduce_op(line: Line, op: str) -> ReduceOp:
    if op not in get_args(ReduceOp):
        raise ParseError(line.text, f"{op!r} is no reduction")
    return cast(ReduceOp, op)


def _slot(program: Program, slot: str, expr: Expr) -> Program:
    match slot:
        case "score":
            return replace(program, score=expr)
        case "mask":
            return replace(program, mask=expr)
        case "weight":
            return replace(program, weight=expr)
        case _:
            return replace(program, output=expr)
