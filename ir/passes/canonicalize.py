"""Turns a Program into the same Program with constants folded and trivial operations removed.

Takes any verified program; leaves one in which no rule of ``simplify`` applies, so running it
again changes nothing. Example: ``mask = true and q - 0 >= k`` becomes ``mask = q >= k``; ``score
** 2.0`` becomes ``score * score``.

Every rule is exact for infinities, NaN and signed zeros: ``x * 0``, ``x - x`` and ``x + 0.0``
stay for floats (they matter when x is inf, NaN or -0.0) and are removed only for integers. The
one deliberate choice is ``x ** 0.5``, which becomes ``sqrt(x)`` because torch computes it that
way.
"""

from __future__ import annotations

import math

from attncompiler.ir.expr import Call, Const, Expr, Index, Size, kind_of
from attncompiler.ir.passes.fold import fold
from attncompiler.ir.program import Program

_COMMUTATIVE = frozenset(
    ["add", "mul", "min", "max", "eq", "ne", "and", "or", "bitand", "bitor", "bitxor"]
)
_SWAPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
_NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
_LARGEST_POWER = 8
_LARGEST_INT = 2**63
_EXACT_IN_FLOAT32 = 2**24


def canonicalize(program: Program) -> Program:
    """Fold constants and remove operations that do nothing; the same object when nothing applies."""
    while (simpler := program.rewritten(simplify)) is not program:
        program = simpler
    return program


def make(op: str, *args: Expr) -> Expr:
    """The call, simplified: what passes use to build expressions."""
    return simplify(Call(op, args))


def simplify(expr: Expr) -> Expr:
    """One node over simplified operands, with every rule that applies at its root applied."""
    while isinstance(expr, Call):
        simpler = _step(expr)
        if simpler is expr:
            return expr
        expr = simpler
    return expr


def _step(call: Call) -> Expr:
    op, args = call.op, call.args
    folded = fold(op, args)
    if folded is not None:
        return folded
    if len(args) == 2 and isinstance(args[0], Const) and not isinstance(args[1], Const):
        if op in _COMMUTATIVE:
            return Call(op, (args[1], args[0]))
        if op in _SWAPPED:
            return Call(_SWAPPED[op], (args[1], args[0]))
    match op, args:
        case "add" | "sub" | "neg", _:
            return _sum(call)
        case "mul" | "div", (x, y):
            return _product(call, x, y)
        case "pow", (x, y):
            return _power(call, x, y)
        case "floordiv" | "mod", (x, y) if kind_of(x) == "int":
            return _division(call, x, y)
        case "and" | "or" | "not", _:
            return _logic(call)
        case "eq" | "ne" | "lt" | "le" | "gt" | "ge", (x, y):
            return _comparison(call, x, y)
        case "where", (c, x, y):
            return _where(call, c, x, y)
        case "min" | "max", (x, y):
            return _extremum(call, x, y)
        case (("bitand" | "bitor"), (x, y)) if x is y:
            return x
        case (("bitor" | "bitxor" | "shl" | "shr"), (x, Const(0))):
            return x
        case "bitand", (_, Const(0)):
            return Const(0)
        case "abs", (Call("neg" | "abs", (x,)),):
            return Call("abs", (x,))
        case "abs", ((Index() | Size()) as x,):
            return x
        case (("floor" | "ceil" | "trunc" | "round"), (x,)) if _is_integral(x):
            return x
        case "to_float" | "to_int" | "to_bool", (x,):
            return _conversion(call, x)
        case _:
            return call


def _is_integral(x: Expr) -> bool:
    match x:
        case Call("floor" | "ceil" | "trunc" | "round", _):
            return True
        case Call("to_float", (y,)):
            return kind_of(y) != "float"
        case _:
            return False


def _is_zero(x: Expr, *, negative: bool) -> bool:
    """Whether adding x changes nothing: the integer 0, or the float zero of the given sign."""
    match x:
        case Const(bool()):
            return False
        case Const(int() as value):
            return value == 0
        case Const(float() as value):
            return value == 0 and (math.copysign(1.0, value) < 0) == negative
        case _:
            return False


def _never_minus_zero(x: Expr) -> bool:
    match x:
        case Const(value):
            return not _is_zero(x, negative=True) or isinstance(value, int)
        case Call("exp" | "exp2" | "sigmoid" | "abs" | "to_float", _):
            return True
        case _:
            return False


def _sum(call: Call) -> Expr:
    match call.op, call.args:
        case "neg", (Call("neg", (x,)),):
            return x
        case "add", (x, Call("neg", (y,))):
            return Call("sub", (x, y))
        case "add", (Call("neg", (x,)), y):
            return Call("sub", (y, x))
        case "sub", (x, Call("neg", (y,))):
            return Call("add", (x, y))
        case "add", (x, y) if _is_zero(y, negative=True):
            return x
        case "add", (x, y) if _is_zero(y, negative=False) and _never_minus_zero(x):
            return x
        case "sub", (x, y) if _is_zero(y, negative=False):
            return x
        case "sub", (x, y) if _is_zero(x, negative=True):
            return Call("neg", (y,))
        case "sub", (x, y) if x is y and kind_of(x) == "int":
            return Const(0)
        case op, (Call(("add" | "sub") as inner, (x, Const(int() as a))), Const(int() as b)):
            total = (a if inner == "add" else -a) + (b if op == "add" else -b)
            fits = abs(total) < _LARGEST_INT
            return Call("add" if total >= 0 else "sub", (x, Const(abs(total)))) if fits else call
        case op, (x, Const(int() as a)) if -_LARGEST_INT < a < 0:
            return Call("sub" if op == "add" else "add", (x, Const(-a)))
        case _:
            return call


def _product(call: Call, x: Expr, y: Expr) -> Expr:
    one, minus_one = (Const(1.0), Const(-1.0)) if kind_of(x) == "float" else (Const(1), Const(-1))
    if y is one:
        return x
    if y is minus_one:
        return Call("neg", (x,))
    match call.op, x, y:
        case "mul", _, Const(0) if kind_of(y) == "int":
            return y
        case "mul", Call("mul", (z, Const(int() as a))), Const(int() as b) if (
            abs(a * b) < _LARGEST_INT
        ):
            return Call("mul", (z, Const(a * b)))
        case op, Call("neg", (a,)), Call("neg", (b,)):
            return Call(op, (a, b))
        case "div", _, Const(float() as c) if _has_exact_inverse(c):
            return Call("mul", (x, Const(1.0 / c)))
        case _:
            return call


def _has_exact_inverse(c: float) -> bool:
    """Powers of two whose inverse is a normal number in every floating type we compute in."""
    return 2.0**-60 <= abs(c) <= 2.0**60 and abs(math.frexp(c)[0]) == 0.5


def _power(call: Call, x: Expr, y: Expr) -> Expr:
    match x, y:
        case _, Const(0.5):
            return Call("sqrt", (x,))
        case _, Const(-0.5):
            return Call("rsqrt", (x,))
        case _, Const(float() as n) if n.is_integer() and abs(n) <= _LARGEST_POWER:
            positive = _repeated(x, int(abs(n)))
            return positive if n >= 0 else Call("div", (Const(1.0), positive))
        case Const(2.0), _:
            return Call("exp2", (y,))
        case _:
            return call


def _repeated(x: Expr, n: int) -> Expr:
    if n <= 1:
        return x if n else Const(1.0)
    half = _repeated(x, n // 2)
    square = Call("mul", (half, half))
    return Call("mul", (square, x)) if n % 2 else square


def _division(call: Call, x: Expr, y: Expr) -> Expr:
    match call.op, x, y:
        case "floordiv", _, Const(1):
            return x
        case "mod", _, Const(1 | -1):
            return Const(0)
        case "floordiv", Call("floordiv", (z, Const(int() as a))), Const(int() as b) if (
            a > 0 < b and a * b < _LARGEST_INT
        ):
            return Call("floordiv", (z, Const(a * b)))
        case "mod", Call("mod", (_, inner)), _ if inner is y:
            return x
        case _:
            return call


def _logic(call: Call) -> Expr:
    match call.op, call.args:
        case "not", (Call("not", (x,)),):
            return x
        case "not", (Call(("eq" | "ne") as op, pair),):
            return Call(_NEGATED[op], pair)
        case "not", (Call(op, pair),) if op in _NEGATED and kind_of(pair[0]) == "int":
            return Call(_NEGATED[op], pair)  # not for floats: NaN fails both ways
        case op, (x, Const(bool() as c)):
            return x if c == (op == "and") else Const(c)
        case _, (x, y) if x is y:
            return x
        case op, (x, Call("not", (y,))) | (Call("not", (y,)), x) if x is y:
            return Const(op == "or")
        case _:
            return call


def _comparison(call: Call, x: Expr, y: Expr) -> Expr:
    match call.op, x, y:
        case ("eq" | "ne") as op, _, Const(bool() as c):
            return x if c == (op == "eq") else Call("not", (x,))
        case op, Call("to_float", (n,)), Const(float() as c) if (
            kind_of(n) == "int" and c.is_integer() and abs(c) <= _EXACT_IN_FLOAT32
        ):
            return Call(op, (n, Const(int(c))))
        case (("lt" | "gt" | "ne"), _, _) if x is y and (call.op != "ne" or kind_of(x) != "float"):
            return Const(False)
        case (("le" | "ge" | "eq"), _, _) if x is y and kind_of(x) != "float":
            return Const(True)
        case _:
            return call


def _where(call: Call, c: Expr, x: Expr, y: Expr) -> Expr:
    match c, x, y:
        case Const(bool() as chosen), _, _:
            return x if chosen else y
        case _ if x is y:
            return x
        case Call("not", (d,)), _, _:
            return Call("where", (d, y, x))
        case _, Const(True), _ if kind_of(y) == "bool":
            return Call("or", (c, y))
        case _, _, Const(False) if kind_of(x) == "bool":
            return Call("and", (c, x))
        case _, Const(False), Const(True):
            return Call("not", (c,))
        case _, Call("where", (d, inner, _)), _ if d is c:
            return Call("where", (c, inner, y))
        case _, _, Call("where", (d, _, inner)) if d is c:
            return Call("where", (c, x, inner))
        case _:
            return call


def _extremum(call: Call, x: Expr, y: Expr) -> Expr:
    match call.op, x, y:
        case _ if x is y:
            return x
        case "max", _, Const(float() as c) if c == -math.inf:
            return x
        case "min", _, Const(float() as c) if c == math.inf:
            return x
        case op, Call(inner, (z, Const() as a)), Const() if inner == op:
            both = fold(op, (a, y))
            return call if both is None else Call(op, (z, both))
        case _:
            return call


def _conversion(call: Call, x: Expr) -> Expr:
    match call.op, x:
        case _ if call.op == f"to_{kind_of(x)}":
            return x
        case ("to_float" | "to_bool") as op, Call("to_int", (y,)) if kind_of(y) == "bool":
            return Call(op, (y,))
        case "to_int", Call("to_float", (y,)) if kind_of(y) == "bool":
            return Call("to_int", (y,))
        case _:
            return call
