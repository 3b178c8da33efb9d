"""Scalar expressions: a typed, interned DAG over indices, the score, tensor loads and row statistics.

Nodes are hash-consed: building the same node twice gives the same object, so equality is identity, hashing is
constant time and shared subexpressions stay shared. Nodes carry no source location (two users' files may share
a node); the front end keeps locations beside the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from attncompiler.ir.ops import CONVERSIONS, OPS, Kind

Axis = Literal["b", "h", "g", "q", "k", "d"]
SizeName = Literal["B", "H", "G", "M", "N", "D", "Dv"]


class _Interned(type):
    """Returns the existing node when one with the same fields is alive."""

    _pool: ClassVar[WeakValueDictionary[tuple[object, ...], Any]] = WeakValueDictionary()

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        known = None if kwargs else _Interned._pool.get((cls, *map(_key, args)))
        if known is not None:
            return known
        node = super().__call__(*args, **kwargs)
        # The class and the type and text of constants take part: 0.0, -0.0, 0 and False are four nodes.
        key = (cls, *(_key(getattr(node, f.name)) for f in fields(node)))
        return _Interned._pool.setdefault(key, node)


def _key(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(_key(v) for v in value)
    return value if isinstance(value, _Node) else (type(value), repr(value))


class _Node(metaclass=_Interned):
    __slots__ = ("__weakref__",)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(cast(Any, self)))

    def __copy__(self) -> _Node:
        return self

    def __deepcopy__(self, memo: object) -> _Node:
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Const(_Node):
    """A number known when the program is built. Its Python type is its kind."""

    value: bool | int | float


@dataclass(frozen=True, slots=True, eq=False)
class Param(_Node):
    """A run-time scalar: a variant's parameter or a lifted literal."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True, eq=False)
class Size(_Node):
    """A run-time extent: B, H (query heads), G (key/value heads), M (queries), N (keys), D, Dv."""

    name: SizeName


@dataclass(frozen=True, slots=True, eq=False)
class Index(_Node):
    """Position along an axis.

    The axes are batch b, query head h, key/value head g, query q (q_start included), key k, value feature d.
    """

    axis: Axis


@dataclass(frozen=True, slots=True, eq=False)
class Dot(_Node):
    """scale * <query_i, key_j>: what the ``score`` slot receives."""


@dataclass(frozen=True, slots=True, eq=False)
class Score(_Node):
    """The value of the ``score`` slot: what ``normalize`` receives."""


@dataclass(frozen=True, slots=True, eq=False)
class Stat(_Node):
    """A row statistic (the result of a reduction over the allowed keys, or over d in the epilogue)."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class OldStat(_Node):
    """The value a running statistic had before the current tile; only rescale factors use it."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Value(_Node):
    """One element o_id of the normalised output row: what the ``output`` slot receives."""


@dataclass(frozen=True, slots=True, eq=False)
class OutGrad(_Node):
    """The gradient of the loss with respect to one element of the output row; backward formulas only."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightGrad(_Node):
    """The gradient with respect to one weight, sum_d go_d value_kd; backward formulas only."""


@dataclass(frozen=True, slots=True, eq=False)
class Local(_Node):
    """A value computed by a ``Let`` of a kernel, varying along ``axes`` (a subset of "bhqk"); kernels only."""

    name: str
    kind: Kind
    axes: str


@dataclass(frozen=True, slots=True, eq=False)
class Load(_Node):
    """One element of a captured tensor, one index expression (of kind int) an axis."""

    tensor: str
    indices: tuple[Expr, ...]
    kind: Kind


@dataclass(frozen=True, slots=True, eq=False)
class Call(_Node):
    """An operator of ``ir/ops.py`` applied to arguments whose kinds fit its rule."""

    op: str
    args: tuple[Expr, ...]

    def __post_init__(self) -> None:
        check_call(self)


Expr: TypeAlias = (
    Const
    | Param
    | Size
    | Index
    | Dot
    | Score
    | Stat
    | OldStat
    | Value
    | OutGrad
    | WeightGrad
    | Local
    | Load
    | Call
)


def check_call(call: Call) -> None:
    """Raise TypeError when the arguments of a call do not fit its operator."""
    op = OPS.get(call.op)
    if op is None:
        raise TypeError(f"unknown operator {call.op!r}")
    if len(call.args) != op.arity:
        raise TypeError(f"{call.op} takes {op.arity} arguments, got {len(call.args)}")
    kinds = [kind_of(a) for a in call.args]
    if call.op in CONVERSIONS:
        return
    match op.rule:
        case "where":
            ok = kinds[0] == "bool" and kinds[1] == kinds[2]
        case "logic":
            ok = all(k == "bool" for k in kinds)
        case "float" | "int" | "bool":
            ok = all(k == op.rule for k in kinds)
        case "compare":
            ok = kinds[0] == kinds[1]
        case "numeric" | "same":
            ok = len(set(kinds)) == 1 and kinds[0] != "bool"
    if not ok:
        raise TypeError(f"{call.op} cannot take arguments of kinds {', '.join(kinds)}")


_kinds: WeakKeyDictionary[Call, Kind] = WeakKeyDictionary()


def kind_of(expr: Expr) -> Kind:
    """The kind (float, int or bool) of an expression's value."""
    match expr:
        case Const(value):
            return (
                "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
            )
        case Param() | Local() | Load():
            return expr.kind
        case Size() | Index():
            return "int"
        case Dot() | Score() | Stat() | OldStat() | Value() | OutGrad() | WeightGrad():
            return "float"
        case Call(op, args):
            found = _kinds.get(expr)
            if found is None:
                found = _kinds[expr] = _call_kind(op, args)
            return found


def _call_kind(op: str, args: tuple[Expr, ...]) -> Kind:
    match OPS[op].rule:
        case "float":
            return "float"
        case "int":
            return "int"
        case "bool" | "compare" | "logic":
            return "bool"
        case "where":
            return kind_of(args[1])
        case "numeric" | "same":
            return kind_of(args[0])


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct operands of a node."""
    match expr:
        case Call(_, args):
            return args
        case Load(_, indices, _):
            return indices
        case _:
            return ()


def with_children(expr: Expr, new: tuple[Expr, ...]) -> Expr:
    """The same node over other operands; the same object when the operands are the same objects."""
    if all(a is b for a, b in zip(children(expr), new, strict=True)):
        return expr
    match expr:
        case Call(op, _):
            return Call(op, new)
        case Load(tensor, _, kind):
            return Load(tensor, new, kind)
        case _:
            return expr


def walk(*roots: Expr, known: Iterable[Expr] = ()) -> Iterator[Expr]:
    """Every node reachable from the roots, once, operands before users (a topological order).

    Nodes in ``known`` are skipped, and with them what only they reach.
    """
    seen: set[Expr] = set(known)
    stack: list[tuple[Expr, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((c, False) for c in reversed(children(node)) if c not in seen)


def rewrite(expr: Expr, rule: Callable[[Expr], Expr], memo: dict[Expr, Expr] | None = None) -> Expr:
    """Rebuild bottom-up: ``rule`` sees each node once, its operands already rewritten."""
    memo = {} if memo is None else memo
    for node in walk(expr):
        if node not in memo:
            memo[node] = rule(with_children(node, tuple(memo[c] for c in children(node))))
    return memo[expr]


def substitute(expr: Expr, mapping: dict[Expr, Expr]) -> Expr:
    """Replace whole nodes, all at once; what a replacement contains is not looked at again."""
    memo = dict(mapping)
    for node in walk(expr):
        if node not in memo:
            memo[node] = with_children(node, tuple(memo[c] for c in children(node)))
    return memo[expr]


_axes: WeakKeyDictionary[Expr, frozenset[str]] = WeakKeyDictionary()


def axes_of(expr: Expr) -> frozenset[str]:
    """The axes along which a value can vary: a subset of b, h, g, q, k, d.

    The score varies along b, h, q and k, a statistic along b, h and q, an output element along d as well.
    """
    found = _axes.get(expr)
    if found is None:
        for node in walk(expr):
            if node not in _axes:
                _axes[node] = _own_axes(node).union(*(_axes[c] for c in children(node)))
        found = _axes[expr]
    return found


def _own_axes(node: Expr) -> frozenset[str]:
    match node:
        case Index(axis):
            return frozenset({axis})
        case Dot() | Score() | WeightGrad():
            return frozenset("bhqk")
        case Stat() | OldStat():
            return frozenset("bhq")
        case Value() | OutGrad():
            return frozenset("bhqd")
        case Local(_, _, axes):
            return frozenset(axes)
        case _:
            return frozenset()


def is_row_only(expr: Expr) -> bool:
    """Whether the value is the same for every key of a row."""
    return "k" not in axes_of(expr)


def stats_in(*roots: Expr) -> frozenset[str]:
    """Names of the row statistics that expressions read."""
    return frozenset(n.name for n in walk(*roots) if isinstance(n, Stat))


def loads_in(roots: Iterable[Expr]) -> frozenset[str]:
    """Names of the tensors that expressions read."""
    return frozenset(n.tensor for n in walk(*roots) if isinstance(n, Load))
