"""What a host library lets a query see, as conditions on a pair: turns them into the mask of a generated kernel.

A condition is a tree. Its ``structure`` (which conditions, how joined, which elements their tensors have) decides the
kernel; its ``arguments`` (window sizes, tensors of ids) are given at each call and rebuild nothing. ``formula`` writes
the tree for one pair on symbols and takes the arguments in the same order in which ``arguments`` lists them.

Positions here count from the start of the sequence, also where a cache holds only its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeAlias, assert_never

import torch
from torch import Tensor

from attncompiler.integrations.overlays import captured, identity, on_symbols


@dataclass(frozen=True, slots=True)
class Everything:
    """Every pair."""


@dataclass(frozen=True, slots=True)
class Causal:
    """Keys up to the query: k <= q."""


@dataclass(frozen=True, slots=True)
class Window:
    """Keys less than ``size`` positions back: q - k < size; later keys are not excluded."""

    size: int


@dataclass(frozen=True, slots=True)
class Near:
    """Keys at most ``distance`` positions away on both sides."""

    distance: int


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Pairs of one chunk of ``size`` positions, counted from ``first`` [B] in each row of the batch."""

    size: int
    first: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SameBlock:
    """Pairs whose ids [B, L] are equal and not negative."""

    ids: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SameSequence:
    """Pairs whose ids [B, L] are equal: sequences packed into one row."""

    ids: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """``inner`` on other positions: those that ``positions`` [B, L] gives for query and key."""

    inner: Condition
    positions: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Keys from ``first`` [B] up to before ``past`` [B]: padding at the ends of the rows.

    Both count from the first key at hand, wherever in the sequence that is.
    """

    first: Tensor
    past: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """Keys that ``keys`` [B, L] (bool) allows: padding anywhere."""

    keys: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """A user's function (b, h, q, k) -> bool, as FlexAttention takes them; its closure is read at each call."""

    function: FunctionType


@dataclass(frozen=True, slots=True, eq=False)
class Both:
    """Pairs that all ``parts`` allow."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Either:
    """Pairs that some of ``parts`` allow."""

    parts: tuple[Condition, ...]


Condition: TypeAlias = (
    Everything
    | Causal
    | Window
    | Near
    | Chunk
    | SameBlock
    | SameSequence
    | Moved
    | Span
    | Allowed
    | Overlay
    | Both
    | Either
)

BATCH, BATCH_LENGTH = ("b",), ("b", "length")


@dataclass(frozen=True, slots=True)
class Argument:
    """One value a condition takes at each call: an int (``axes`` is None), or a tensor over ``axes``.

    ``dtype`` is "int", "float" or "bool".
    """

    value: Any
    axes: tuple[str | int, ...] | None = None
    dtype: str = "int"

    @property
    def structure(self) -> tuple[object, ...]:
        """What of the argument decides the kernel."""
        return (self.axes, self.dtype)


def arguments(condition: Condition) -> tuple[Argument, ...]:
    """The run-time arguments of a tree, in the order in which ``formula`` reads them."""
    match condition:
        case Everything() | Causal():
            return ()
        case Window(size) | Near(size):
            return (Argument(size),)
        case Chunk(size, first):
            return (Argument(size), Argument(first, BATCH))
        case SameBlock(ids) | SameSequence(ids):
            return (Argument(ids, BATCH_LENGTH),)
        case Moved(inner, positions):
            return (Argument(positions, BATCH_LENGTH), *arguments(inner))
        case Span(first, past):
            return (Argument(first, BATCH), Argument(past, BATCH))
        case Allowed(keys):
            return (Argument(keys, BATCH_LENGTH, "bool"),)
        case Overlay(function):
            return tuple(_whole(tensor) for _, tensor in captured(function))
        case Both(parts) | Either(parts):
            return tuple(a for part in parts for a in arguments(part))
        case _:
            assert_never(condition)


def _whole(tensor: Tensor) -> Argument:
    """A tensor that a function captures. Its extents are constants of the body, which may ask for them."""
    if tensor.dtype == torch.bool:
        return Argument(tensor, tuple(tensor.shape), "bool")
    return Argument(tensor, tuple(tensor.shape), "float" if tensor.is_floating_point() else "int")


def structure(condition: Condition) -> tuple[object, ...]:
    """What of a tree decides the kernel; hashable."""
    name = type(condition).__name__
    match condition:
        case Both(parts) | Either(parts):
            return (name, *map(structure, parts))
        case Moved(inner, _):
            return (name, structure(inner))
        case Overlay(function):
            return (name, identity(function))
        case _:
            return (name, *(a.structure for a in arguments(condition)))


def contains(condition: Condition, kind: type) -> bool:
    """Whether a condition of that kind is somewhere in the tree."""
    match condition:
        case Both(parts) | Either(parts):
            return any(contains(part, kind) for part in parts)
        case Moved(inner, _):
            return isinstance(condition, kind) or contains(inner, kind)
        case _:
            return isinstance(condition, kind)


def forbids_later_keys(condition: Condition) -> bool:
    """Whether no key after its query can be allowed, so that keys after the last query need not be read."""
    match condition:
        case Causal():
            return True
        case Both(parts):
            return any(map(forbids_later_keys, parts))
        case _:
            return False


def counts_from_the_start(condition: Condition) -> bool:
    """Whether moving all positions by the same distance changes the condition."""
    match condition:
        case Everything() | Causal() | Window() | Near() | Span():
            return False
        case Both(parts) | Either(parts):
            return any(map(counts_from_the_start, parts))
        case _:
            return True


def described(condition: Condition) -> str:
    """The condition in words, for the head of a generated file."""
    match condition:
        case Both(parts) | Either(parts):
            return f" {'and' if isinstance(condition, Both) else 'or'} ".join(
                f"({described(p)})" if isinstance(p, Both | Either) else described(p) for p in parts
            )
        case Moved(inner, _):
            return f"{described(inner)}, on positions of its own for each sequence"
        case Overlay(function):
            return f"what {function.__qualname__} allows"
        case _:
            return _WORDS[type(condition)]


_WORDS: dict[type, str] = {
    Everything: "all keys",
    Causal: "keys up to the query",
    Window: "keys in a window before the query",
    Near: "keys in a window around the query",
    Chunk: "keys of the query's chunk",
    SameBlock: "keys of the query's block of ids",
    SameSequence: "keys of the query's packed sequence",
    Span: "keys inside the padding of the row",
    Allowed: "keys that are no padding",
}


def visible(condition: Condition, start: int, count: int, device: torch.device) -> Tensor:
    """Which of the columns start .. start + count - 1 are no padding: bool [B, count], or [1, count] for all rows."""
    column = torch.arange(start, start + count, device=device)
    match condition:
        case Span(first, past):
            return (column >= first[:, None]) & (column < past[:, None])
        case Allowed(keys):
            return keys[:, start : start + count]
        case Both(parts):
            found = torch.ones((1, count), dtype=torch.bool, device=device)
            for part in parts:
                found = found & visible(part, start, count, device)
            return found
        case _:
            return torch.ones((1, count), dtype=torch.bool, device=device)


@dataclass(frozen=True, slots=True)
class Pair:
    """The symbols of one pair: batch row, head, query position, key position, and how many keys lie before the key."""

    b: Any
    h: Any
    q: Any
    k: Any
    column: Any


def formula(condition: Condition, pair: Pair, given: Iterator[Any]) -> Any:
    """Whether the pair is allowed, on symbols; ``given`` yields a symbol for each of ``arguments(condition)``."""
    match condition:
        case Everything():
            return True
        case Causal():
            return pair.k <= pair.q
        case Window():
            return pair.q - pair.k < next(given)
        case Near():
            distance = next(given)
            return (pair.q - pair.k <= distance) & (pair.k - pair.q <= distance)
        case Chunk():
            size, first = next(given), next(given)[pair.b]
            return (pair.k - first) // size == (pair.q - first) // size
        case SameBlock():
            ids = next(given)
            block = ids[pair.b, pair.q]
            return (block == ids[pair.b, pair.k]) & (block >= 0)
        case SameSequence():
            ids = next(given)
            return ids[pair.b, pair.q] == ids[pair.b, pair.k]
        case Moved(inner, _):
            positions = next(given)
            q, k = positions[pair.b, pair.q], positions[pair.b, pair.k]
            return formula(inner, Pair(pair.b, pair.h, q, k, pair.column), given)
        case Span():
            first, past = next(given), next(given)
            return (pair.column >= first[pair.b]) & (pair.column < past[pair.b])
        case Allowed():
            return next(given)[pair.b, pair.k]
        case Overlay(function):
            paths = [path for path, _ in captured(function)]
            held = {path: next(given) for path in paths}
            return on_symbols(function, held)(pair.b, pair.h, pair.q, pair.k)
        case Both(parts):
            written = [formula(part, pair, given) for part in parts]
            return _joined([w for w in written if w is not True], lambda x, y: x & y, True)
        case Either(parts):
            written = [formula(part, pair, given) for part in parts]
            if any(w is True for w in written):
                return True
            return _joined(written, lambda x, y: x | y, False)
        case _:
            assert_never(condition)


def _joined(written: list[Any], join: Callable[[Any, Any], Any], empty: bool) -> Any:
    if not written:
        return empty
    result = written[0]
    for other in written[1:]:
        result = join(result, other)
    return result


def both(*parts: Condition) -> Condition:
    """The conjunction, flat and without the parts that allow everything."""
    flat: list[Condition] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Both) else (part,))
    kept = tuple(p for p in flat if not isinstance(p, Everything))
    return kept[0] if len(kept) == 1 else Both(kept) if kept else Everything()
