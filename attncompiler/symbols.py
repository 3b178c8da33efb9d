"""The value a slot method sees: turns Python operators, torch functions and methods into expressions.

A Symbol stands for one element. Whatever needs its number (``if``, ``float()``, ``range()``) is an error that names
the line and says how to write it instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodDescriptorType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any, NoReturn

from attncompiler import arithmetic as ar
from attncompiler import errors
from attncompiler.caller import condition_at
from attncompiler.ir.expr import Expr, kind_of
from attncompiler.recorder import Recorder, is_torch_tensor
from attncompiler.symbol_functions import FUNCTIONS, METHODS, apply, unknown_function

if TYPE_CHECKING:
    import torch

_FIXES = {
    "if": "use where(condition, a, b); or, to choose once and for all, make the value an attribute without annotation",
    "while": "unroll the loop over a plain Python range",
    "assert": "check arguments in prepare(), where they are ordinary tensors",
    "and": "write & instead of `and`, with each comparison in parentheses",
    "or": "write | instead of `or`, with each comparison in parentheses",
    "not": "write ~ instead of `not`",
    "chain": "write (a < b) & (b < c) instead of a < b < c",
    "max": "use maximum(a, b) of attncompiler.dsl instead of the built-in max",
    "min": "use minimum(a, b) of attncompiler.dsl instead of the built-in min",
    "any": "join the conditions with |",
    "all": "join the conditions with &",
}


class Symbol:
    """One element of a formula; supports arithmetic, comparison, ``& | ^ ~ << >>`` and the functions of dsl.py."""

    __slots__ = ("expr", "recorder")
    __array_ufunc__ = None  # numpy scalars leave mixed operators to us

    def __init__(self, expr: Expr, recorder: Recorder) -> None:
        self.expr = expr
        self.recorder = recorder

    def __repr__(self) -> str:
        return f"Symbol({self.expr!r})"

    __hash__ = object.__hash__

    def _binary(
        self, build: Callable[..., Expr], *head: Any, other: object, swap: bool = False
    ) -> Symbol:
        rec = self.recorder
        value = rec.operand(other)
        pair = (value, self.expr) if swap else (self.expr, value)
        return rec.symbol(build(rec, *head, *pair))

    def __add__(self, other: object) -> Symbol:
        return self._binary(ar.numeric, "add", other=other)

    def __radd__(self, other: object) -> Symbol:
        return self._binary(ar.numeric, "add", other=other, swap=True)

    def __sub__(self, other: object) -> Symbol:
        return self._binary(ar.numeric, "sub", other=other)

    def __rsub__(self, other: object) -> Symbol:
        return self._binary(ar.numeric, "sub", other=other, swap=True)

    def __mul__(self, other: object) -> Symbol:
        return self._binary(ar.numeric, "mul", other=other)

    def __rmul__(self, other: object) -> Symbol:
        return self._binary(ar.numeric, "mul", other=other, swap=True)

    def __truediv__(self, other: object) -> Symbol:
        return self._binary(ar.real, "div", other=other)

    def __rtruediv__(self, other: object) -> Symbol:
        return self._binary(ar.real, "div", other=other, swap=True)

    def __floordiv__(self, other: object) -> Symbol:
        return self._binary(ar.divide, "floordiv", other=other)

    def __rfloordiv__(self, other: object) -> Symbol:
        return self._binary(ar.divide, "floordiv", other=other, swap=True)

    def __mod__(self, other: object) -> Symbol:
        return self._binary(ar.divide, "mod", other=other)

    def __rmod__(self, other: object) -> Symbol:
        return self._binary(ar.divide, "mod", other=other, swap=True)

    def __divmod__(self, other: object) -> tuple[Symbol, Symbol]:
        return self // other, self % other

    def __rdivmod__(self, other: object) -> tuple[Symbol, Symbol]:
        return self.__rfloordiv__(other), self.__rmod__(other)

    def __pow__(self, other: object) -> Symbol:
        return self._binary(ar.power, other=other)

    def __rpow__(self, other: object) -> Symbol:
        return self._binary(ar.power, other=other, swap=True)

    def __and__(self, other: object) -> Symbol:
        return self._binary(ar.bitwise, "bitand", other=other)

    def __or__(self, other: object) -> Symbol:
        return self._binary(ar.bitwise, "bitor", other=other)

    def __xor__(self, other: object) -> Symbol:
        return self._binary(ar.bitwise, "bitxor", other=other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __lshift__(self, other: object) -> Symbol:
        return self._binary(ar.bitwise, "shl", other=other)

    def __rlshift__(self, other: object) -> Symbol:
        return self._binary(ar.bitwise, "shl", other=other, swap=True)

    def __rshift__(self, other: object) -> Symbol:
        return self._binary(ar.bitwise, "shr", other=other)

    def __rrshift__(self, other: object) -> Symbol:
        return self._binary(ar.bitwise, "shr", other=other, swap=True)

    def __lt__(self, other: object) -> Symbol:
        return self._binary(ar.compare, "lt", other=other)

    def __le__(self, other: object) -> Symbol:
        return self._binary(ar.compare, "le", other=other)

    def __gt__(self, other: object) -> Symbol:
        return self._binary(ar.compare, "gt", other=other)

    def __ge__(self, other: object) -> Symbol:
        return self._binary(ar.compare, "ge", other=other)

    def __eq__(self, other: object) -> Any:
        return NotImplemented if other is None else self._binary(ar.compare, "eq", other=other)

    def __ne__(self, other: object) -> Any:
        return NotImplemented if other is None else self._binary(ar.compare, "ne", other=other)

    def __neg__(self) -> Symbol:
        return self.recorder.symbol(ar.numeric(self.recorder, "neg", self.expr))

    def __pos__(self) -> Symbol:
        return self

    def __abs__(self) -> Symbol:
        return self.recorder.symbol(ar.numeric(self.recorder, "abs", self.expr))

    def __invert__(self) -> Symbol:
        return self.recorder.symbol(ar.invert(self.recorder, self.expr))

    def __round__(self, digits: int | None = None) -> Symbol:
        if digits is not None:
            raise errors.ArgumentsError(
                location=self.recorder.here(),
                name="round",
                detail=f"to {digits} digits",
                fix="scale first: round(x * 100) / 100",
            )
        return self.recorder.symbol(ar.rounded(self.recorder, "round", self.expr))

    def __bool__(self) -> bool:
        location = self.recorder.here()
        construct = condition_at(location) if location else ""
        raise errors.SymbolicConditionError(
            location=location,
            construct=_spelled(construct),
            fix=_FIXES.get(construct, "; ".join(_FIXES[c] for c in ("if", "and", "chain"))),
        )

    def _no_number(self, construct: str, fix: str) -> NoReturn:
        raise errors.SymbolicNumberError(
            location=self.recorder.here(), construct=construct, fix=fix
        )

    def __float__(self) -> float:
        self._no_number(
            "float() or a function of the math module",
            "use exp, log, tanh ... from attncompiler.dsl, or to_float(x)",
        )

    def __int__(self) -> int:
        self._no_number("int()", "use to_int(x) of attncompiler.dsl")

    def __index__(self) -> int:
        self._no_number(
            "as a Python index or in range()",
            "declare the table as a Tensor(...) of the class; loop over a constant without annotation",
        )

    def __len__(self) -> int:
        self._no_number("len()", "a symbol is one element")

    def __iter__(self) -> NoReturn:
        self._no_number(
            "iteration", "a symbol is one element; row statistics come from row.sum(...)"
        )

    def __getitem__(self, index: object) -> NoReturn:
        raise errors.IndexFormError(
            location=self.recorder.here(), tensor="a single element", what="anything"
        )

    def item(self) -> NoReturn:
        """Refuse: there is no number yet."""
        self._no_number(".item()", "compute with the symbol itself")

    # Facts about the element, as a 0-d tensor has them: FlexAttention bodies ask for these.

    @property
    def dtype(self) -> torch.dtype:
        """float32, int64 or bool, after the kind."""
        import torch

        return {"float": torch.float32, "int": torch.int64, "bool": torch.bool}[kind_of(self.expr)]

    @property
    def device(self) -> torch.device:
        """The cpu: a symbol has no memory."""
        import torch

        return torch.device("cpu")

    @property
    def shape(self) -> tuple[()]:
        """A single element."""
        return ()

    ndim = 0

    def dim(self) -> int:
        """Return 0: a single element."""
        return 0

    def size(self) -> tuple[()]:
        """Return (): a single element."""
        return ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in METHODS:
            raise unknown_function(self.recorder, name, f".{name}()")
        return partial(apply, self.recorder, METHODS, name, self)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return torch_call(func, args, kwargs or {})


def _spelled(construct: str) -> str:
    return {"": "a truth test", "chain": "a chain of comparisons"}.get(construct, f"`{construct}`")


def torch_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A torch function called with a symbol somewhere among its arguments."""
    from attncompiler.symbol_tensors import captured_element

    recorder = _recorder_of((args, kwargs))
    method = isinstance(func, (MethodDescriptorType, WrapperDescriptorType))
    name = func.__name__.strip("_")
    if name == "getitem" and is_torch_tensor(args[0]):
        return captured_element(recorder, args[0], args[1])
    table = METHODS if method else FUNCTIONS
    shown = f".{name}()" if method else f"torch.{name}"
    return apply(recorder, table, name, *args, shown=shown, **kwargs)


def _recorder_of(value: object) -> Recorder:
    found = _search(value)
    assert found is not None, "torch dispatched to a symbol, so one is among the arguments"
    return found


def _search(value: object) -> Recorder | None:
    match value:
        case Symbol():
            return value.recorder
        case tuple() | list():
            items: Any = value
        case dict():
            items = value.values()
        case _:
            return getattr(value, "recorder", None)
    return next((r for r in map(_search, items) if r is not None), None)
