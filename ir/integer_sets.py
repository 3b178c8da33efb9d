"""Turns a mask into the set of integer points that it allows, for exact answers about tiles.

The set lies in the space of (q, k, h). What is the same for a whole tile (parameters, sizes, loads that read no index)
is a parameter of the set, so one set stands for all lengths and values. Sums, differences, multiples, ``//`` and ``%`` by
literals, minima, choices, bit lengths and tests for powers of two have exact rules; both a condition and its opposite
are built from them, never by complement. Everything else raises ``Refusal``, which names the part of the mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from attncompiler.ir.expr import Call, Const, Expr, Index, Param, Size, children, kind_of, walk
from attncompiler.ir.linear import Linear, is_uniform, linear
from attncompiler.ir.printer import print_expression

if TYPE_CHECKING:
    import islpy

    IntegerSet: TypeAlias = islpy.Set
    Piecewise: TypeAlias = islpy.PwAff

POSITIONS = 1 << 30  # positions and lengths stay below
AXES = ("q", "k", "h")
_COMPARED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


class Refusal(Exception):
    """Why a mask has no integer set that is worth having."""


@dataclass(frozen=True, slots=True)
class Universe:
    """The names of everything that the sets of one mask speak about.

    ``atoms`` are the uniform expressions that are parameters; parameter number i is called ``a<i>``. ``corners`` are
    the corners of a box, which are parameters of their own names.
    """

    context: islpy.Context
    atoms: tuple[Expr, ...]
    corners: tuple[Param, ...]

    @staticmethod
    def of(context: islpy.Context, corners: Iterable[Param], *roots: Expr) -> Universe:
        """The universe of some conditions; those on the corners of a box are told apart by their leaves."""
        corners = tuple(corners)
        bound = set[Expr](corners)
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
        return Universe(context, atoms, corners)

    def space(self, axes: tuple[str, ...]) -> islpy.Space:
        """The space of sets of positions along some axes; of parameters alone when there are none."""
        import islpy

        names = [*(f"a{i}" for i in range(len(self.atoms))), *(c.name for c in self.corners)]
        if axes:
            return islpy.Space.create_from_names(self.context, set=list(axes), params=names)
        return islpy.Space.create_from_names(self.context, set=[], params=names).params()

    def parameters(self) -> tuple[Expr, ...]:
        """What the parameters stand for, in the order of the space."""
        return (*self.atoms, *self.corners)


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
    """Builds sets over some axes of a universe."""

    universe: Universe
    axes: tuple[str, ...]
    places: dict[Expr, Piecewise] = field(default_factory=dict)
    conditions: dict[tuple[Expr, bool], IntegerSet] = field(default_factory=dict)
    everything: IntegerSet = field(init=False)
    nothing: IntegerSet = field(init=False)

    def __post_init__(self) -> None:
        import islpy

        space = self.universe.space(self.axes)
        self.everything, self.nothing = islpy.Set.universe(space), islpy.Set.empty(space)
        local = islpy.LocalSpace.from_space(space)
        for number, expr in enumerate(self.universe.parameters()):
            place = islpy.Aff.var_on_domain(local, islpy.dim_type.param, number)
            self.places[expr] = islpy.PwAff.from_aff(place)
        for number, axis in enumerate(self.axes):
            place = islpy.Aff.var_on_domain(local, islpy.dim_type.set, number)
            self.places[Index(axis)] = islpy.PwAff.from_aff(place)  # type: ignore[arg-type]

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
        found = getattr(difference, f"{op}_set")(self.number(0))
        return found if found.n_basic_set() < 2 else found.coalesce()

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
        for n in range(1, _magnitude(x).bit_length() + 1):
            where = size.ge_set(self.number(1 << (n - 1))) & size.lt_set(self.number(1 << n))
            found = found.union_add(self.number(n).intersect_domain(where))
        return found

    def _power_of_two(self, x: Expr, truth: bool) -> IntegerSet:
        """``x & (x - 1) == 0`` holds for 0 and the powers of two."""
        value, zero = self.value(x), self.number(0)
        powers = [1 << n for n in range(_magnitude(x).bit_length())]
        if truth:
            found = value.ge_set(zero) & value.le_set(self.number(2))
            for n in powers[2:]:
                found |= value.eq_set(self.number(n))
            return found
        found = value.lt_set(zero)
        for n in powers[1:]:
            found |= value.gt_set(self.number(n)) & value.lt_set(self.number(2 * n))
        return found


def _magnitude(expr: Expr) -> int:
    """A limit of the absolute value of an expression; a refusal when none is known."""
    match expr:
        case Const(value):
            return abs(int(value))
        case Index() | Size():
            return POSITIONS
        case Param(name) if name in _CORNER_NAMES:
            return POSITIONS
        case Call("add" | "sub", (x, y)):
            return _magnitude(x) + _magnitude(y)
        case Call("mul", (x, Const(int() as c))) | Call("mul", (Const(int() as c), x)):
            return _magnitude(x) * abs(c)
        case Call("floordiv", (x, Const(int() as c))) if c:
            return _magnitude(x) // abs(c) + 1
        case Call("mod", (_, Const(int() as c))):
            return abs(c)
        case Call("neg" | "abs", (x,)):
            return _magnitude(x)
        case Call("min" | "max", (x, y)) | Call("where", (_, x, y)):
            return max(_magnitude(x), _magnitude(y))
        case _:
            raise Refusal(f"{print_expression(expr)} has no bound that is known before the call")


_CORNER_NAMES = frozenset(f"{axis}_{end}" for axis in AXES for end in ("lo", "hi"))


def _power_test(expr: Expr) -> Expr | None:
    """The x of ``x & (x - 1)``."""
    match expr:
        case Call("bitand", (x, y)):
            apart = linear(x).plus(linear(y), -1)
            return x if apart == Linear({}, 1) else y if apart == Linear({}, -1) else None
        case _:
            return None


def _refusal(expr: Expr) -> Refusal:
    """Why one operation has no exact rule."""
    text = print_expression(expr)
    match expr:
        case Call("floordiv" | "mod", _) if kind_of(expr) == "int":
            return Refusal(f"{text} divides by a number that is known only at run time")
        case Call("mul", _) if kind_of(expr) == "int":
            return Refusal(f"{text} is a product of positions")
        case Call("shl" | "shr", _):
            return Refusal(f"{text} shifts by an amount that is not a literal")
        case Call("bitand" | "bitor" | "bitxor", _):
            return Refusal(f"{text} works on single bits")
        case Call(_, args) if any(kind_of(a) == "float" for a in args):
            return Refusal(f"{text} compares or converts floating-point numbers")
        case Call():
            return Refusal(f"{text} has no rule for sets of integers")
        case _:
            return Refusal(f"{text} is read from a tensor for each query, key or head")
