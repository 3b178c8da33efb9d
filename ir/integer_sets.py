"""Turns a mask into the set of integer points that it allows, for exact answers about tiles.

A set lies in the space of some positions, usually q, k and h. What is the same for a whole tile (parameters, sizes,
loads that read no index) is a parameter of the set, so one set stands for all lengths and values. Sums, differences,
multiples, ``//`` and ``%`` by literals, minima, choices, bit lengths and tests for powers of two have exact rules; both
a condition and its opposite are built from them, never by complement. Everything else raises ``RefusalError``, which
names the part of the mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from attncompiler.ir.expr import (
    Call,
    Const,
    Expr,
    Index,
    Local,
    Param,
    Size,
    children,
    kind_of,
    walk,
)
from attncompiler.ir.linear import Linear, is_uniform, linear
from attncompiler.ir.printer import print_expression

if TYPE_CHECKING:
    import islpy

    IntegerSet: TypeAlias = islpy.Set
    Piecewise: TypeAlias = islpy.PwAff

LIMIT = 1 << 30  # positions and lengths stay below
_COMPARED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


class RefusalError(Exception):
    """Why a mask has no integer set that is worth having: what is wrong with which part of it."""

    def __init__(self, problem: str, part: Expr | None = None) -> None:
        super().__init__(problem)
        self.problem, self.part = problem, part

    def __str__(self) -> str:
        return (
            self.problem if self.part is None else f"{print_expression(self.part)} {self.problem}"
        )


@dataclass(frozen=True, slots=True)
class Position:
    """A coordinate of pairs, 0 <= place < limit, and the first and the last one of a box."""

    place: Index | Local
    lo: Param
    hi: Param
    limit: int = LIMIT

    @property
    def name(self) -> str:
        """What formulas call it."""
        return self.place.axis if isinstance(self.place, Index) else self.place.name


@dataclass(frozen=True, slots=True)
class Universe:
    """The names of everything that the sets of one mask speak about.

    ``atoms`` are the uniform expressions that are parameters; parameter number i is called ``a<i>``. The corners of
    boxes are parameters too. If the mask asks whether ``tested`` is a power of two, sets have one more dimension: the
    power of two p with ``p <= tested < 2 * p``. They leave open which numbers are powers of two.
    """

    context: islpy.Context
    positions: tuple[Position, ...]
    atoms: tuple[Expr, ...]
    tested: Expr | None = None

    @staticmethod
    def of(
        context: islpy.Context, positions: tuple[Position, ...], roots: Iterable[Expr]
    ) -> Universe:
        """The universe of conditions on positions or on corners."""
        roots = tuple(roots)
        bound: set[Expr] = {c for p in positions for c in (p.lo, p.hi)}
        moving = {n: n in bound for n in walk(*roots)}
        for node in walk(*roots):
            moving[node] |= not is_uniform(node) or any(moving[c] for c in children(node))
        found: dict[Expr, None] = {}
        stack, seen = list(roots), set[Expr]()
        while stack:
            node = stack.pop()
            if node in seen or isinstance(node, Const):
                continue
            seen.add(node)
            if moving[node] or not _is_atom(node):
                stack.extend(children(node))
            else:
                found[node] = None
        atoms = tuple(sorted((a for a in found if a not in bound), key=print_expression))
        tests = (_power_test(node) for node in walk(*roots))
        tested = next((t for t in tests if t is not None and not bound & set(walk(t))), None)
        return Universe(context, positions, atoms, tested)

    def corners(self) -> tuple[Param, ...]:
        """The corners of a box."""
        return tuple(c for p in self.positions for c in (p.lo, p.hi))

    def parameters(self) -> tuple[Expr, ...]:
        """What the parameters stand for, in the order of the space."""
        return (*self.atoms, *self.corners())

    def space(self, positions: tuple[Position, ...]) -> islpy.Space:
        """The space of sets of some positions; of parameters alone when there are none."""
        import islpy

        names = [*(f"a{i}" for i in range(len(self.atoms))), *(c.name for c in self.corners())]
        places = [p.name for p in positions]
        if places and self.tested is not None:
            places.append("power")
        found = islpy.Space.create_from_names(self.context, set=places, params=names)
        return found if places else found.params()

    def limits(self) -> dict[Expr, int]:
        """Numbers that positions and corners stay below."""
        return {e: p.limit for p in self.positions for e in (p.place, p.lo, p.hi)}


def _is_atom(node: Expr) -> bool:
    """Whether a uniform expression is one number to the sets; sums and comparisons are taken apart."""
    match node:
        case Call("mul", (x, y)):
            return not isinstance(x, Const) and not isinstance(y, Const)
        case Call("and" | "or" | "not" | "add" | "sub" | "neg", _):
            return kind_of(node) == "float"
        case Call("where", _):
            return kind_of(node) != "bool"
        case Call(op, (x, _)) if op in _COMPARED:
            return kind_of(x) == "float"
        case _:
            return True


@dataclass(slots=True)
class Sets:
    """Builds sets of some positions of a universe, or of boxes when there are none."""

    universe: Universe
    positions: tuple[Position, ...]
    places: dict[Expr, Piecewise] = field(default_factory=dict)
    conditions: dict[tuple[Expr, bool], IntegerSet] = field(default_factory=dict)
    everything: IntegerSet = field(init=False)
    nothing: IntegerSet = field(init=False)

    def __post_init__(self) -> None:
        import islpy

        space = self.universe.space(self.positions)
        self.everything, self.nothing = islpy.Set.universe(space), islpy.Set.empty(space)
        local = islpy.LocalSpace.from_space(space)
        for number, expr in enumerate(self.universe.parameters()):
            place = islpy.Aff.var_on_domain(local, islpy.dim_type.param, number)
            self.places[expr] = islpy.PwAff.from_aff(place)
        for number, position in enumerate(self.positions):
            place = islpy.Aff.var_on_domain(local, islpy.dim_type.set, number)
            self.places[position.place] = islpy.PwAff.from_aff(place)

    def where(self, condition: Expr, truth: bool = True) -> IntegerSet:
        """The points at which a condition has the given truth value."""
        key = condition, truth
        if key not in self.conditions:
            self.conditions[key] = self._where(condition, truth)
        return self.conditions[key]

    def _where(self, expr: Expr, truth: bool) -> IntegerSet:
        match expr:
            case Const(value):
                return self.everything if value == truth else self.nothing
            case Call("not", (x,)):
                return self.where(x, not truth)
            case Call("and" | "or" as op, (x, y)):
                first, second = self.where(x, truth), self.where(y, truth)
                joined = first & second if (op == "and") == truth else first | second
                return joined.coalesce()
            case Call("where", (c, x, y)):
                first = self.where(c, True) & self.where(x, truth)
                return (first | (self.where(c, False) & self.where(y, truth))).coalesce()
            case Call("eq" | "ne" as op, (x, y)) if kind_of(x) == "bool":
                same = (op == "eq") == truth
                first = self.where(x, True) & self.where(y, same)
                return (first | (self.where(x, False) & self.where(y, not same))).coalesce()
            case Call("to_bool", (x,)) if kind_of(x) == "int":
                return self._compare("ne" if truth else "eq", x, Const(0))
            case Call(op, (x, y)) if op in _COMPARED and kind_of(x) == "int":
                return self._compare(op if truth else _COMPARED[op], x, y)
            case _ if expr in self.places:  # a uniform truth value is the number 0 or 1
                return self.places[expr].eq_set(self.number(int(truth)))
            case _:
                raise _refusal(expr)

    def _compare(self, op: str, x: Expr, y: Expr) -> IntegerSet:
        tested = _power_test(x) if y is Const(0) and op in ("eq", "ne") else None
        if tested is not None:
            return self._power_of_two(tested, op == "eq")
        difference = self.value(x).sub(self.value(y))
        rules = {
            "lt": difference.lt_set,
            "le": difference.le_set,
            "gt": difference.gt_set,
            "ge": difference.ge_set,
            "eq": difference.eq_set,
            "ne": difference.ne_set,
        }
        return rules[op](self.number(0)).coalesce()

    def number(self, value: int) -> Piecewise:
        """A constant."""
        import islpy

        number = islpy.Val.int_from_si(self.universe.context, value)
        return islpy.PwAff.val_on_domain(self.everything, number)

    def value(self, expr: Expr) -> Piecewise:
        """The value of an expression of kind int at every point."""
        if expr not in self.places:
            self.places[expr] = self._value(expr).coalesce()
        return self.places[expr]

    def _value(self, expr: Expr) -> Piecewise:
        match expr:
            case Const(int() as value):
                return self.number(value)
            case Call("add", (x, y)):
                return self.value(x).add(self.value(y))
            case Call("sub", (x, y)):
                return self.value(x).sub(self.value(y))
            case Call("neg", (x,)):
                return self.value(x).neg()
            case Call("mul", (x, Const(int() as c))) | Call("mul", (Const(int() as c), x)):
                return self._times(x, c)
            case Call("floordiv", (x, Const(int() as c))):
                return self._quotient(x, c)
            case Call("mod", (x, Const(int() as c))):
                return self._remainder(x, c)
            case Call("shl", (x, Const(int() as c))) if 0 <= c < 40:
                return self._times(x, 1 << c)
            case Call("shr", (x, Const(int() as c))) if 0 <= c < 40:
                return self._quotient(x, 1 << c)
            case Call("shl", (Const(int() as c), x)):
                return self._shifted(expr, c, self.value(x))
            case Call("bitand", (x, Const(int() as c))) if c >= 0 and c & (c + 1) == 0:
                return self._remainder(x, c + 1)
            case Call("min", (x, y)):
                return self.value(x).min(self.value(y))
            case Call("max", (x, y)):
                return self.value(x).max(self.value(y))
            case Call("abs", (x,)):
                return self.value(x).max(self.value(x).neg())
            case Call("sign", (x,)):
                one = self.number(1)
                return self.value(x).min(one).max(one.neg())
            case Call("where", (c, x, y)):
                return self._choice(c, self.value(x), self.value(y))
            case Call("to_int", (x,)) if kind_of(x) == "bool":
                return self._choice(x, self.number(1), self.number(0))
            case Call("to_int", (x,)) if kind_of(x) == "int":
                return self.value(x)
            case Call("bit_length", (x,)):
                return self._bit_length(x)
            case _:
                raise _refusal(expr)

    def _times(self, x: Expr, factor: int) -> Piecewise:
        import islpy

        return self.value(x).scale_val(islpy.Val.int_from_si(self.universe.context, factor))

    def _quotient(self, x: Expr, divisor: int) -> Piecewise:
        import islpy

        if divisor == 0:
            return self.number(0)
        value = self.value(x) if divisor > 0 else self.value(x).neg()
        size = islpy.Val.int_from_si(self.universe.context, abs(divisor))
        return value.scale_down_val(size).floor()

    def _remainder(self, x: Expr, divisor: int) -> Piecewise:
        import islpy

        times = islpy.Val.int_from_si(self.universe.context, divisor)
        rest = self.value(x).sub(self._quotient(x, divisor).scale_val(times))
        return rest if divisor else self.number(0)

    def _choice(self, condition: Expr, x: Piecewise, y: Piecewise) -> Piecewise:
        first = x.intersect_domain(self.where(condition, True))
        return first.union_add(y.intersect_domain(self.where(condition, False)))

    def _shifted(self, expr: Expr, base: int, by: Piecewise) -> Piecewise:
        """``base << by`` where the amount is one of few constants."""
        found: Piecewise | None = None
        for where, amount in by.get_pieces():
            shift = amount.get_constant_val().to_python()
            if not amount.is_cst() or not 0 <= shift < 40:
                raise _refusal(expr)
            piece = self.number(base << shift).intersect_domain(where)
            found = piece if found is None else found.union_add(piece)
        if found is None:
            raise _refusal(expr)
        return found

    def _bit_length(self, x: Expr) -> Piecewise:
        size = self.value(x).max(self.value(x).neg())
        found = self.number(0).intersect_domain(size.le_set(self.number(0)))
        for n in range(1, self._size(x).bit_length() + 1):
            where = size.ge_set(self.number(1 << (n - 1))) & size.lt_set(self.number(1 << n))
            found = found.union_add(self.number(n).intersect_domain(where))
        return found

    def _power_of_two(self, x: Expr, truth: bool) -> IntegerSet:
        """``x & (x - 1) == 0`` holds for 0 and the powers of two."""
        if x is not self.universe.tested or not self.positions:
            raise RefusalError("is tested for a power of two, as another number is", x)
        value, zero, power = self.value(x), self.number(0), self.power()
        if truth:
            return value.eq_set(zero) | value.eq_set(power)
        between = value.gt_set(power) & value.lt_set(power.add(power))
        return value.lt_set(zero) | (between & power.ge_set(self.number(1)))

    def power(self) -> Piecewise:
        """The power of two that is the last dimension."""
        import islpy

        local = islpy.LocalSpace.from_space(self.everything.get_space())
        place = islpy.Aff.var_on_domain(local, islpy.dim_type.set, len(self.positions))
        return islpy.PwAff.from_aff(place)

    def _size(self, expr: Expr) -> int:
        """A limit of the absolute value of an expression; a refusal when none is known before the call."""
        limits = self.universe.limits()

        def size(node: Expr) -> int:
            match node:
                case Const(value):
                    return abs(int(value))
                case Size():
                    return LIMIT
                case Call("add" | "sub", (x, y)):
                    return size(x) + size(y)
                case Call("mul", (x, Const(int() as c))) | Call("mul", (Const(int() as c), x)):
                    return size(x) * abs(c)
                case Call("floordiv", (x, Const(int() as c))) if c:
                    return size(x) // abs(c) + 1
                case Call("mod", (_, Const(int() as c))):
                    return abs(c)
                case Call("neg" | "abs", (x,)):
                    return size(x)
                case Call("min" | "max", (x, y)) | Call("where", (_, x, y)):
                    return max(size(x), size(y))
                case _ if node in limits:
                    return limits[node]
                case _:
                    raise RefusalError("has no bound that is known before the call", node)

        return size(expr)


def _power_test(expr: Expr) -> Expr | None:
    """The x of ``x & (x - 1)``."""
    match expr:
        case Call("bitand", (x, y)):
            apart = linear(x).plus(linear(y), -1)
            return x if apart == Linear({}, 1) else y if apart == Linear({}, -1) else None
        case _:
            return None


def _refusal(expr: Expr) -> RefusalError:
    """Why one operation has no exact rule."""
    match expr:
        case Call("floordiv" | "mod", _) if kind_of(expr) == "int":
            problem = "divides by a number that is known only at run time"
        case Call("mul", _) if kind_of(expr) == "int":
            problem = "multiplies positions by a number that is known only at run time"
        case Call("shl" | "shr", _):
            problem = "shifts by an amount that is not a literal"
        case Call("bitand" | "bitor" | "bitxor", _):
            problem = "works on single bits"
        case Call(_, args) if any(kind_of(a) == "float" for a in args):
            problem = "compares or converts floating-point numbers"
        case Call():
            problem = "has no rule for sets of integers"
        case _:
            problem = "is read from a tensor for each query, key or head"
    return RefusalError(problem, expr)
