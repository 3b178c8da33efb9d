"""Move positive row factors of a backward's walk into its exponentials: fewer values a row are kept while it runs.

Example: ``exp2(score - r0) * r1`` with ``r1 = 1.0 / sum1`` becomes ``exp2(score - r2)`` with
``r2 = r0 + log2(sum1)``, the logarithm of the sum of all weights; ``weight_grad - r3 + r4`` becomes
``weight_grad - r5`` with ``r5 = r3 - r4``. The result differs by rounding: an exponential of a difference of that
size is no more exact than its argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from attncompiler.ir.backward import BackwardPass
from attncompiler.ir.expr import Call, Const, Expr, Local, Stat, children, rewrite, walk
from attncompiler.ir.kernel import Let

_LOGARITHMS = {"exp": "log", "exp2": "log2"}


def fold_row_factors(walk_: BackwardPass, positive: frozenset[str]) -> BackwardPass:
    """The walk with its row factors in its exponents; ``positive`` names the statistics that are never negative."""
    values: dict[Expr, Expr] = {let.local: let.expr for let in walk_.rows}
    made: dict[Expr, Let] = {}
    # Exponentials that were at most 1 before they became a share of their sum.
    shares: set[Expr] = set()

    def local(value: Expr) -> Local:
        if value not in made:
            name = f"x{len(made)}"
            made[value] = Let(Local(name, "float", "bhq"), value)
        return made[value].local

    def divisor(factor: Expr) -> Expr | None:
        match values.get(factor):
            case Call("div", (Const(1.0), Stat(name) as total)) if name in positive:
                return total
            case _:
                return None

    alone = _uses(walk_)

    def rule(node: Expr) -> Expr:
        match node:
            case Call("mul", (x, y)):
                for exponential, factor in ((x, y), (y, x)):
                    total = divisor(factor)
                    match exponential:
                        case Call(
                            "exp" | "exp2" as op, (Call("sub", (score, Local() as top)),)
                        ) if total is not None and alone(exponential) and top in values:
                            logarithm = Call(_LOGARITHMS[op], (total,))
                            shift = local(Call("add", (values[top], logarithm)))
                            folded = Call(op, (Call("sub", (score, shift)),))
                            if exponential in walk_.nonpositive:
                                shares.add(folded)
                            return folded
            case Call("add", (Call("sub", (x, Local() as less)), Local() as more)) if (
                less in values and more in values and not isinstance(x, Local)
            ):
                return Call("sub", (x, local(Call("sub", (values[less], values[more])))))
        return node

    changed = _mapped(walk_, lambda e: rewrite(e, rule))
    if not made:
        return walk_
    read = set(walk(*_elements(changed)))
    rows = (*walk_.rows, *made.values())
    return replace(
        changed,
        rows=tuple(let for let in rows if let.local in read),
        nonpositive=walk_.nonpositive | shares,
    )


def _elements(walk_: BackwardPass) -> list[Expr]:
    found = [walk_.score, *(u.body for u in walk_.sums)]
    found += [e for e in (walk_.mask, walk_.weight, walk_.dot_grad) if e is not None]
    found += [e for s in (*walk_.key_grads, *walk_.pair_grads) for e in (s.offset, s.value)]
    return found


def _uses(walk_: BackwardPass) -> Callable[[Expr], bool]:
    """Tells whether an exponential is used by one node of the walk's formulas."""
    users: dict[Expr, set[Expr]] = {}
    for node in walk(*_elements(walk_)):
        for child in children(node):
            users.setdefault(child, set()).add(node)
    roots = set(_elements(walk_))
    return lambda expr: expr not in roots and len(users.get(expr, ())) == 1


def _mapped(walk_: BackwardPass, rule: Callable[[Expr], Expr]) -> BackwardPass:
    return replace(
        walk_,
        sums=tuple(replace(u, body=rule(u.body)) for u in walk_.sums),
        weight=None if walk_.weight is None else rule(walk_.weight),
        dot_grad=None if walk_.dot_grad is None else rule(walk_.dot_grad),
        key_grads=tuple(replace(s, value=rule(s.value)) for s in walk_.key_grads),
        pair_grads=tuple(replace(s, value=rule(s.value)) for s in walk_.pair_grads),
    )
