"""Turns what the user's code does with symbols into typed expressions, and remembers where each was written.

One Recorder serves one trace. It lifts numeric literals to run-time parameters, declares torch tensors that a body
captures, and collects the row reductions in the order they were asked for.
"""

from __future__ import annotations

import math
import sys
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeAlias

from attncompiler import errors
from attncompiler.caller import user_location
from attncompiler.captured_numbers import RunTimeFloat, RunTimeInt
from attncompiler.ir.expr import Call, Const, Expr, Load, Param, Stat, children, kind_of
from attncompiler.ir.location import Location
from attncompiler.ir.ops import Kind
from attncompiler.ir.program import ReduceOp, Reduction, TensorDecl

if TYPE_CHECKING:
    from attncompiler.symbols import Symbol

Number: TypeAlias = "bool | int | float"
Operand: TypeAlias = "Expr | bool | int | float"

# These shape a formula (identities, signs, halves) and fold; every other literal stays a run-time value.
_KEPT_FLOATS = frozenset({0.0, 1.0, -1.0, 2.0, 0.5})
_KEPT_INTS = frozenset({0, 1, -1, 2})
_RANK: dict[Kind, int] = {"bool": 0, "int": 1, "float": 2}


class Recorder:
    """The state of one trace; see the module's text.

    ``boundary`` is the code object of the function that calls the slots: frames beyond it are not the user's
    body. ``slot`` names the slot that runs and ``slot_location`` its definition.
    """

    def __init__(self, boundary: CodeType, reserved: frozenset[str] = frozenset()) -> None:
        self.locations: dict[Expr, Location] = {}
        self.lifted: dict[str, Number] = {}
        self.captured: dict[str, Any] = {}
        self.captured_declarations: dict[str, TensorDecl] = {}
        self.reductions: list[Reduction] = []
        self.output_reductions: list[Reduction] = []
        self.kept: dict[str, Expr] = {}
        self.limits: dict[str, tuple[int, str]] = {}
        self.slot = ""
        self.slot_location: Location | None = None
        self._boundary = boundary
        self._reserved = reserved
        self._literals: dict[tuple[Kind, object], Param] = {}

    def limit(self, parameter: str, least: int, what: str) -> None:
        """Note that a parameter must be at least ``least``, because it is ``what``."""
        known = self.limits.get(parameter)
        if known is None or known[0] < least:
            self.limits[parameter] = (least, what)

    def here(self) -> Location | None:
        """The user's expression that is being evaluated, or else the slot it belongs to."""
        return user_location(self._boundary) or self.slot_location

    def symbol(self, expr: Expr) -> Symbol:
        """A symbol for ``expr``; operators and loads not seen before belong to the user's current expression."""
        from attncompiler.symbols import Symbol

        self._locate(expr)
        return Symbol(expr, self)

    def _locate(self, expr: Expr) -> None:
        fresh = [expr]
        location: Location | None = None
        while fresh:
            node = fresh.pop()
            if isinstance(node, (Call, Load)) and node not in self.locations:
                location = location or self.here()
                if location is None:
                    return
                self.locations[node] = location
                fresh.extend(children(node))

    def operand(self, value: object) -> Operand:
        """What a value of the user's code stands for in a formula: an expression or a plain number."""
        from attncompiler.symbol_tensors import TensorSymbol
        from attncompiler.symbols import Symbol

        if isinstance(value, Symbol):
            return value.expr
        if isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, TensorSymbol):
            return value.element()
        if is_torch_tensor(value):
            return self._captured_scalar(value)
        if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
            return self.operand(value.item())  # type: ignore[attr-defined]
        raise errors.OperandError(
            location=self.here(),
            what=f"a value of type {type(value).__name__}",
            fix="use symbols, Python numbers, and tensors indexed down to one element",
        )

    def convert(self, value: Operand, kind: Kind, *, lift: bool = True) -> Expr:
        """``value`` as an expression of ``kind``; numbers become literals, lifted unless told otherwise."""
        if isinstance(value, (bool, int, float)):
            return self._literal(value, kind, lift)
        if kind_of(value) == kind:
            return value
        if isinstance(value, Const):
            return self._literal(value.value, kind, lift=False)
        return Call(f"to_{kind}", (value,))

    def _literal(self, value: Number, kind: Kind, lift: bool) -> Expr:
        number: Number
        match kind:
            case "bool":
                number = bool(value)
            case "int":
                number = int(value)
                if not -(2**63) <= number < 2**63:
                    raise errors.OperandError(
                        location=self.here(),
                        what=f"the integer {value}",
                        fix="integers have 64 bits; use a float",
                    )
            case "float":
                number = float(value)
        changes = isinstance(value, (RunTimeInt, RunTimeFloat))
        shapes = number in (_KEPT_INTS if kind == "int" else _KEPT_FLOATS) and not changes
        if kind == "bool" or shapes or not lift or not math.isfinite(number):
            return Const(number)
        key = (kind, value.origin if changes else repr(number))  # type: ignore[union-attr]
        if key not in self._literals:
            name = self._fresh_name(f"c{len(self.lifted)}")
            self._literals[key] = Param(name, kind)
            self.lifted[name] = number
        return self._literals[key]

    def _fresh_name(self, name: str) -> str:
        while name in self._reserved or name in self.lifted or name in self.captured:
            name += "_"
        return name

    def capture(self, tensor: Any) -> TensorDecl:
        """Declare a torch tensor that a body uses: a tensor input of the program, found again by identity.

        Its axes get free names, so another length of the same tensor does not change the program.
        """
        for name, known in self.captured.items():
            if known is tensor:
                return self.captured_declarations[name]
        name = self._fresh_name(f"captured{len(self.captured)}")
        axes = tuple(f"{name}_axis{i}" for i in range(tensor.dim()))
        declaration = TensorDecl(name, axes, torch_kind(tensor.dtype))
        self.captured[name] = tensor
        self.captured_declarations[name] = declaration
        return declaration

    def _captured_scalar(self, tensor: Any) -> Operand:
        if tensor.dim() > 0:
            raise errors.OperandError(
                location=self.here(),
                what=f"a torch tensor of shape {tuple(tensor.shape)} as one number",
                fix="index every axis of it by expressions of the indices, such as bias[h, q - k]",
            )
        if not tensor.requires_grad and tensor.device.type == "cpu":
            value = tensor.item()
            # -inf has to be seen by the analysis; other values may change from call to call.
            if isinstance(value, bool) or not math.isfinite(value):
                return bool(value) if isinstance(value, bool) else float(value)
        declaration = self.capture(tensor)
        return Load(declaration.name, (), declaration.kind)

    def reduction(self, op: ReduceOp, body: Expr, *, over_features: bool = False) -> Stat:
        """The statistic ``op(body)`` of the row; asking for the same one twice gives the same statistic."""
        known = self.output_reductions if over_features else self.reductions
        for reduction in known:
            if reduction.op == op and reduction.body is body:
                return Stat(reduction.name)
        name = f"{'d' if over_features else ''}{op}{len(known)}"
        known.append(Reduction(name, op, body))
        return Stat(name)


def kind_of_operand(value: Operand) -> Kind:
    """The kind of an expression or a Python number."""
    match value:
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
        case _:
            return kind_of(value)


def common_kind(*values: Operand) -> Kind:
    """The kind that holds all: float over int over bool, as in torch."""
    return max((kind_of_operand(v) for v in values), key=_RANK.__getitem__)


def is_torch_tensor(value: object) -> bool:
    """Whether ``value`` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def torch_kind(dtype: object) -> Kind:
    """The kind of a torch dtype, by its name."""
    name = str(dtype).removeprefix("torch.")
    if name == "bool":
        return "bool"
    return "int" if "int" in name else "float"
