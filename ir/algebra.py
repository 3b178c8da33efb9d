"""Turns our expressions into sympy formulas and back, to simplify the quotient of two of them.

sympy is only asked for quotients of formulas in which everything awkward (loads, conditions, statistics
inside other functions) is an opaque real symbol, so it never sees types, masks or indices, and what it
answers is verified numerically by the caller. It is imported on first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from attncompiler.ir.expr import Call, Const, Expr, kind_of, walk
from attncompiler.ir.passes.canonicalize import make

if TYPE_CHECKING:
    import sympy


def quotient(new: Expr, old: Expr, opaque: frozenset[Expr]) -> Expr:
    """A simplified expression for ``new / old``, both of kind float; nodes in ``opaque`` are not looked into.

    Powers and exponentials are combined, so that exp(-a) / exp(-b) comes back as exp(b - a), which does not
    overflow where the two exponentials do.
    """
    import sympy

    bridge = _Bridge(opaque)
    ratio = bridge.formula(new) / bridge.formula(old)
    ratio = sympy.powsimp(ratio, combine="exp")
    ratio = ratio.replace(sympy.exp, lambda x: sympy.exp(_tidy(x)))
    ratio = ratio.replace(
        lambda e: e.is_Pow and e.base.is_Rational, lambda e: sympy.Pow(e.base, _tidy(e.exp))
    )
    return bridge.expression(ratio)


def expanded(expr: Expr) -> Expr:
    """A formula of kind float multiplied out, so that terms that are opposite and factors that are inverse cancel.

    Whatever the formula divides by stays as it is, everywhere.
    """
    import sympy

    divisors: set[Expr] = set()
    stack = [n.args[1] for n in walk(expr) if isinstance(n, Call) and n.op == "div"]
    while stack:
        node = stack.pop()
        if isinstance(node, Call) and node.op in ("mul", "div"):
            stack += node.args
        elif not isinstance(node, Const):
            divisors.add(node)
    bridge = _Bridge(frozenset(divisors))
    return bridge.expression(sympy.expand(bridge.formula(expr)))


def _tidy(exponent: sympy.Expr) -> sympy.Expr:
    """Terms that cancel removed, a factor common to all terms written once."""
    import sympy

    return sympy.factor_terms(sympy.expand(exponent), sign=False)


class _Bridge:
    """The correspondence between opaque nodes and symbols during one translation."""

    def __init__(self, opaque: frozenset[Expr]) -> None:
        self.opaque = opaque
        self.symbols: dict[Expr, sympy.Symbol] = {}
        self.nodes: dict[sympy.Symbol, Expr] = {}

    def symbol(self, node: Expr) -> sympy.Symbol:
        import sympy

        if node not in self.symbols:
            symbol = sympy.Symbol(f"x{len(self.symbols)}", real=True)
            self.symbols[node], self.nodes[symbol] = symbol, node
        return self.symbols[node]

    def formula(self, expr: Expr) -> sympy.Expr:
        """The sympy formula of an expression; operators sympy has no exact match for become symbols."""
        table = _to_sympy()
        memo: dict[Expr, sympy.Expr] = {}
        for node in walk(expr):
            match node:
                case _ if node in self.opaque or kind_of(node) != "float":
                    memo[node] = self.symbol(node)
                case Const(value) if math.isfinite(value):
                    memo[node] = _number(value)
                case Call(op, args) if op in table and all(kind_of(a) == "float" for a in args):
                    memo[node] = table[op](*(memo[a] for a in args))
                case _:
                    memo[node] = self.symbol(node)
        return memo[expr]

    def expression(self, formula: sympy.Expr) -> Expr:
        """The expression of a formula made of this bridge's symbols."""
        if formula.is_Symbol:
            return self.nodes[formula]
        if formula.is_Rational:
            return Const(float(formula))
        if formula.is_Add:
            return self._sum(formula)
        if formula.is_Mul:
            return self._product(formula)
        if formula.is_Pow:
            return self._power(formula)
        return make(_from_sympy(formula), *(self.expression(a) for a in formula.args))

    def _sum(self, formula: sympy.Expr) -> Expr:
        terms = sorted(formula.args, key=lambda t: (t.could_extract_minus_sign(), t.sort_key()))
        negative = [t.could_extract_minus_sign() for t in terms]
        total = self.expression(terms[0])
        for term, minus in zip(terms[1:], negative[1:], strict=True):
            total = (
                make("sub", total, self.expression(-term))
                if minus
                else make("add", total, self.expression(term))
            )
        return total

    def _product(self, formula: sympy.Expr) -> Expr:
        import sympy

        above, below = sympy.fraction(formula, exact=True)
        if below != 1:
            return make("div", self.expression(above), self.expression(below))
        factors = sorted(above.args, key=lambda t: t.sort_key())
        if factors[0] == -1:
            return make("neg", self.expression(sympy.Mul(*factors[1:])))
        product = self.expression(factors[0])
        for factor in factors[1:]:
            product = make("mul", product, self.expression(factor))
        return product

    def _power(self, formula: sympy.Expr) -> Expr:
        base, exponent = formula.args
        if base == 2:
            return make("exp2", self.expression(exponent))
        if exponent.is_Rational and exponent < 0:
            return make("div", Const(1.0), self.expression(base**-exponent))
        return make("pow", self.expression(base), self.expression(exponent))


def _number(value: float) -> sympy.Expr:
    import sympy

    return sympy.Rational(value)  # exact: comes back as the same float


def _to_sympy() -> dict[str, Callable[..., sympy.Expr]]:
    import sympy

    return {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "div": lambda x, y: x / y,
        "neg": lambda x: -x,
        "abs": sympy.Abs,
        "sign": sympy.sign,
        "pow": sympy.Pow,
        "exp": sympy.exp,
        "exp2": lambda x: sympy.Pow(2, x),
        "log": sympy.log,
        "sqrt": sympy.sqrt,
        "rsqrt": lambda x: 1 / sympy.sqrt(x),
        "tanh": sympy.tanh,
    }


def _from_sympy(formula: sympy.Expr) -> str:
    import sympy

    names = {
        sympy.exp: "exp",
        sympy.Abs: "abs",
        sympy.sign: "sign",
        sympy.log: "log",
        sympy.tanh: "tanh",
    }
    return names[formula.func]
