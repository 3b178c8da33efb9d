"""Counts what the formulas of a kernel cost at one pair of a query and a key: instructions, exponentials, products.

Only what varies along both counts, for values of one axis are computed once a tile's side. Masks are left out: most
tiles that are visited hold allowed pairs alone. The costs of functions are those of ``templates/triton/math.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from attncompiler.backends.triton_forward import vanishes
from attncompiler.ir.backward import Backward, BackwardPass
from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Load,
    Local,
    OutGrad,
    Score,
    Stat,
    Value,
    WeightGrad,
    axes_of,
    children,
    kind_of,
    walk,
)
from attncompiler.ir.kernel import Kernel, KernelPass, Let

# Ordinary instructions and those of the unit for exponentials, which gives reciprocals too; others take one.
_COSTS: dict[str, tuple[float, float]] = {
    "exp2": (5, 1), "exp": (11, 1), "expm1": (20, 0), "log": (14, 0), "log2": (14, 0), "log1p": (20, 1),
    "div": (3, 1), "sqrt": (6, 1), "rsqrt": (4, 1), "tanh": (14, 2), "sigmoid": (15, 2), "erf": (20, 1),
    "sin": (20, 0), "cos": (20, 0), "pow": (40, 3), "floordiv": (20, 1), "mod": (20, 1),
    "trunc": (3, 0), "round": (5, 0), "sign": (2, 0), "bit_length": (30, 0),
    "not": (0, 0), "neg": (0, 0), "abs": (0, 0),
}  # fmt: skip
_LOAD = 3.0  # an address, a conversion, the load itself
_ADD_TO_MEMORY = 12.0  # atomic addition of one number as a 64-bit integer
# Registers that an element of a tile takes, addresses of 64 bits counted in: a value that is loaded, one that is added
# to memory, a division of integers.
_LOADED, _SCATTERED, _DIVIDED = 4, 10, 8
# Formulas of so many operations a pair, and masks of so many comparisons, take none beside their operands; more do.
_OPERATIONS, _OPERATION, _COMPARISONS, _COMPARISON = 16, 0.25, 3, 1
_SCATTERED_FEATURE = 3
_FEW_DOWN = 4
_DIVISIONS = frozenset({"mod", "floordiv", "bit_length"})
_ORDERS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
# A vector of positions is computed again where that costs nothing; what is divided or taken from other tensors stays.
_POSITION = 1 / 3
_CONVERSION = 0.5  # two numbers at a time to 16 bits


@dataclass(frozen=True, slots=True)
class PairWork:
    """What a kernel does at one pair, all its walks together.

    ``operations`` are float32 instructions, ``exponentials`` those of the special unit; ``head_products`` are products
    over the head dimension (scores, dq, dk), ``value_products`` those over the value dimension.
    """

    operations: float
    exponentials: float
    head_products: int
    value_products: int


@dataclass(frozen=True, slots=True)
class Extra:
    """What a kernel keeps in registers beside the tiles of a plain softmax.

    ``accumulators`` are the sums of weighted values; ``across`` the vectors along the second side of a tile that come
    from memory: values of keys, in the kernel of the columns values of rows. A vector of 64-bit integers counts as
    two and a half: it is compared in halves. ``tiles`` are the values of pairs that are used
    more than once: a soft cap's tanh, which its derivative reads again, a product that is a tensor's gradient as well.
    ``pairs`` are registers that each pair takes beside them, for what is loaded from a tensor or added to one and for
    long formulas; ``down`` the vectors along the first side of a tile, of rows those beyond a few; ``features`` are
    tiles of a block's rows by the value features, ahead of the walks of a backward or after those of a forward; some
    of them are ``loaded`` from a tensor.
    ``common`` are the numbers of pairs that formulas and the mask read both, as a distance that is a term of the score
    and lies in a window: they wait for the products, where what only one of them reads is computed when it is needed.
    ``turned``: the kernel of the columns multiplies as that of the rows does, and turns the scores.
    """

    accumulators: int = 1
    across: float = 0
    tiles: int = 0
    pairs: float = 0
    down: int = 0
    features: float = 3
    turned: bool = False
    common: int = 0
    loaded: bool = False


SOFTMAX: dict[Literal["forward", "rows", "columns"], PairWork] = {
    "forward": PairWork(3.5, 1, 1, 1),
    "rows": PairWork(3.5, 1, 2, 1),
    "columns": PairWork(5, 1, 2, 2),
}


def forward_work(kernel: Kernel) -> PairWork:
    """The work of a forward kernel."""
    operations = exponentials = 0.0
    head = value = 0
    for p in kernel.passes:
        bodies = [x.body for s in p.sweeps for x in s.parts]
        found = _elements(p.score, bodies, p.nonpositive)
        operations += found.operations + sum(len(s.stats) for s in p.sweeps)
        operations += _CONVERSION * len(p.weights)
        exponentials += found.exponentials
        head += found.head_products
        value += len(p.weights)
    return PairWork(operations, exponentials, head, value)


def backward_work(backward: Backward, kind: Literal["rows", "columns"]) -> PairWork:
    """The work of the kernel that owns blocks of queries, or of the one that owns blocks of keys."""
    if kind == "columns":
        last = backward.passes[-1]
        found = _elements(last.score, _column_bodies(last), last.nonpositive)
        operations = found.operations + len(last.key_grads) + 2 * _CONVERSION
        value = found.value_products + 1
        return PairWork(operations, found.exponentials, 2, value)
    operations = exponentials = 0.0
    head = value = 0
    for p in backward.passes:
        results = [p.dot_grad] if p.dot_grad is not None else []
        bodies = [u.body for u in p.sums]
        bodies += [e for s in p.pair_grads for e in (s.offset, s.value)]
        found = _elements(p.score, [*bodies, *results], p.nonpositive)
        operations += found.operations + len(p.sums) + _ADD_TO_MEMORY * len(p.pair_grads)
        operations += _CONVERSION * len(results)
        exponentials += found.exponentials
        head += (1 if results else found.head_products) + len(results)
        value += found.value_products
    return PairWork(operations, exponentials, head, value)


def forward_extra(kernel: Kernel) -> Extra:
    """What a forward kernel keeps."""
    accumulators = sum(len(p.weights) for p in kernel.passes)
    across, tiles, pairs, down, common = 0.0, 0, 0.0, 0, 0
    for p in kernel.passes:
        bodies = [x.body for s in p.sweeps for x in s.parts]
        roots = [*_pair_roots(p), *bodies]
        across = max(across, _vectors(p.keys, roots, "k"))
        # A softmax's weights are both summed and multiplied by values.
        tiles = max(tiles, _shared(p.score, bodies) - 1)
        pairs = max(pairs, _pair_registers(p, roots) + _kept_mask(p, len(kernel.passes)))
        down = max(down, len(_down(roots, "q")) - _FEW_DOWN)
        common = max(common, _common(p, [p.score, *bodies]))
    finish = kernel.finish
    roots = [*(r.body for r in finish.reductions), finish.output]
    features = _features(roots) + accumulators
    kept = max(accumulators, 1), across, tiles, pairs, down, features
    return Extra(*kept, common=common, loaded=_loads_features(roots))


def backward_extra(backward: Backward, kind: Literal["rows", "columns"]) -> Extra:
    """What a backward kernel keeps."""
    last = backward.passes[-1]
    if kind == "columns":
        bodies = _column_bodies(last)
        roots = [*bodies, *_pair_roots(last)]
        across = _vectors(last.rows, roots, "q")
        # A softmax's weights give dv, and are a factor of those of dk.
        tiles = max(_shared(last.score, bodies) - 1, 0)
        turned = any(u.op != "sum" for p in backward.passes for u in p.sums)
        pairs, down = _pair_registers(last, roots), len(_down(roots, "k"))
        common = _common(last, [last.score, *bodies])
        return Extra(1, across, tiles, pairs, down, turned=turned, common=common)
    across, tiles, pairs, down, common = 0.0, 0, 0.0, 0, 0
    for p in backward.passes:
        bodies = [*(u.body for u in p.sums), *(s.value for s in p.pair_grads)]
        bodies += [p.dot_grad] if p.dot_grad is not None else []
        roots = [*_pair_roots(p), *bodies, *(s.offset for s in p.pair_grads)]
        across = max(across, _vectors(p.keys, roots, "k"))
        tiles = max(
            tiles, _shared(p.score, bodies) + (len(p.sums) if p.dot_grad is not None else 0)
        )
        pairs = max(pairs, _pair_registers(p, roots) + _SCATTERED * len(p.pair_grads))
        down = max(down, len(_down(roots, "q")) + len(p.sums) - _FEW_DOWN)
        common = max(common, _common(p, [p.score, *bodies]))
    start = backward.start
    roots = [*(r.body for r in start.reductions), start.value_grad]
    features = _features(roots)
    features += sum(_SCATTERED_FEATURE if "q" in axes_of(s.offset) else 1.5 for s in start.elements)
    kept = across, tiles, pairs, down, features
    return Extra(1, *kept, common=common, loaded=_loads_features(roots))


def _shared(score: Expr, bodies: list[Expr]) -> int:
    """How many values of pairs are computed once and used more often; the score, which has a name, is none of them."""
    roots = [*bodies, *([score] if score is not Dot() and Score() in set(walk(*bodies)) else [])]
    users = Counter(c for n in walk(*roots) for c in set(children(n)))
    users.update(bodies)
    return sum(isinstance(n, Call) and _is_pair(n) and users[n] > 1 for n in users)


def _common(p: KernelPass | BackwardPass, formulas: list[Expr]) -> int:
    """How many numbers of pairs both the formulas of a walk and its mask read; truth values take a bit each."""
    if p.mask is None:
        return 0
    read = set(walk(*formulas))
    return sum(
        isinstance(n, Call) and n in read and _is_pair(n) and kind_of(n) != "bool"
        for n in set(walk(p.mask))
    )


def _pair_roots(p: KernelPass | BackwardPass) -> list[Expr]:
    return [p.score, *([p.mask] if p.mask is not None else [])]


def _column_bodies(last: BackwardPass) -> list[Expr]:
    assert last.weight is not None
    assert last.dot_grad is not None
    return [last.weight, last.dot_grad, *(s.value for s in last.key_grads)]


def _pair_registers(p: KernelPass | BackwardPass, roots: list[Expr]) -> float:
    """Registers that a pair takes for loads, for divisions by what is no constant and for long formulas."""
    calls = [n for n in set(walk(*roots)) if isinstance(n, Call) and _is_pair(n)]
    loads = sum(isinstance(n, Load) and _is_pair(n) for n in set(walk(*roots)))
    divided = sum(
        n.op in _DIVISIONS and kind_of(n) == "int" and not isinstance(n.args[-1], Const)
        for n in calls
    )
    compared = 0
    if p.mask is not None:
        compared = sum(
            isinstance(n, Call) and n.op in _ORDERS and _is_pair(n) for n in set(walk(p.mask))
        )
    found: float = _LOADED * loads + _DIVIDED * divided
    found += _OPERATION * max(len(calls) - _OPERATIONS, 0)
    return found + _COMPARISON * max(compared - _COMPARISONS, 0)


def _kept_mask(p: KernelPass, passes: int) -> float:
    """Registers for a mask that is applied to terms and weights one by one, because the score alone does not do."""
    if p.mask is None or vanishes(p):
        return 0.0
    terms = len(p.weights) + sum(len(s.stats) for s in p.sweeps)
    if terms > 2:
        return 2.0
    return 0.3 * terms if passes == 1 else 1.0


def _down(roots: list[Expr], axis: str) -> set[Expr]:
    """The vectors along the side of a tile that stays."""
    other = "k" if axis == "q" else "q"
    return {
        n
        for n in set(walk(*roots))
        if isinstance(n, Local | Stat) and axis in axes_of(n) and other not in axes_of(n)
    }


def _features(roots: list[Expr]) -> float:
    """Tiles of rows by value features that formulas hold at a time: a load takes two, one of a feature alone a half."""
    found = 1.0
    for n in set(walk(*roots)):
        match n:
            case Value() | OutGrad():
                found += 1
            case Load() if "d" in axes_of(n):
                found += 2 if "q" in axes_of(n) else 0.5
            case _:
                pass
    return found


def _loads_features(roots: list[Expr]) -> bool:
    """Whether formulas read a tensor's value for each feature of each row."""
    return any(isinstance(n, Load) and {"q", "d"} <= axes_of(n) for n in walk(*roots))


def _elements(score: Expr, bodies: list[Expr], nonpositive: frozenset[Expr]) -> PairWork:
    """The formulas of one walk; products of the scores and of the gradients of weights where they are read."""
    plain = score is Dot()
    read = set(walk(*bodies))
    roots = [*bodies, *([score] if Score() in read and not plain else [])]
    read = set(walk(*roots))
    users = Counter(c for n in read if _is_pair(n) for c in children(n))
    added = Counter(
        c
        for n in read
        if isinstance(n, Call) and n.op in ("add", "sub") and _is_pair(n)
        for c in n.args
    )

    def fused(node: Expr) -> bool:
        """A product of which every use is a term of a sum."""
        return 0 < users[node] == added[node] and node not in roots

    operations = exponentials = 0.0
    for node in read:
        if not _is_pair(node):
            continue
        match node:
            case Dot() | Score() if node is Dot() or plain:
                # The scale of the scores; an extreme is scaled once a row.
                operations += 1.0 if users[node] > added[node] else 0.0
            case Load():
                operations += _LOAD
            case Call("mul"):
                operations += 0.0 if fused(node) else 1.0
            case Call("exp2") if node in nonpositive:
                exponentials += 1
            case Call(op):
                ordinary, special = _COSTS.get(op, (1.0, 0.0))
                operations += ordinary
                exponentials += special
            case _:
                pass
    dots = Dot() in read or (plain and Score() in read)
    return PairWork(operations, exponentials, int(dots), int(WeightGrad() in read))


def _is_pair(node: Expr) -> bool:
    return {"q", "k"} <= axes_of(node)


def _vectors(lets: Iterable[Let], roots: Iterable[Expr], axis: str) -> float:
    """How many vectors along an axis the roots read; mere positions are none, those computed from them count less."""
    defined = {let.local: let.expr for let in lets}

    def weight(expr: Expr) -> float:
        """1 for what comes from memory, less for what is computed from positions alone."""
        found = 0.0
        for n in walk(expr):
            match n:
                case Load() | Stat():
                    return 1
                case Local() if n in defined:
                    found = max(found, weight(defined[n]))
                case Call("floordiv" | "mod" | "min" | "max"):
                    found = _POSITION
                case _:
                    pass
        return found

    other = "k" if axis == "q" else "q"
    return sum(
        weight(n) * (2.5 if kind_of(n) == "int" and weight(n) == 1 else 1)
        for n in set(walk(*roots))
        if isinstance(n, Local | Stat | Load) and axis in axes_of(n) and other not in axes_of(n)
    )
