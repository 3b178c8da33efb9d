"""Runs a variant's slots on symbols: turns a Variant into a Program, with the line each expression was written on."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from attncompiler import errors
from attncompiler.declarations import Tensor
from attncompiler.ir.expr import Dot, Expr, Param, Score, Value, loads_in, walk
from attncompiler.ir.location import Location
from attncompiler.ir.ops import Kind
from attncompiler.ir.program import ParamDecl, Program, TensorDecl
from attncompiler.recorder import Operand, Recorder, is_torch_tensor, kind_of_operand
from attncompiler.scopes import At, OutputAt, Row
from attncompiler.slots import SLOTS, slot_location
from attncompiler.symbol_tensors import TensorSymbol, resolve
from attncompiler.symbols import Symbol
from attncompiler.user_code import UserCode
from attncompiler.variant import Variant


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced variant.

    ``params`` holds the values of the parameters of this instance and of the lifted literals, ``tensors`` the
    declarations by name, those only ``prepare`` reads and captured torch tensors included; ``captured`` the captured
    torch tensors themselves. ``slot_locations`` gives the definition of each slot the variant overrides.
    ``scale`` is None for 1/sqrt(D). ``definition`` is the source of what was traced where that is no class, and
    ``origin`` the call that traced it. ``orders`` names the tensors of the layout's order of queries and of keys;
    ``limits`` the least value of parameters, and what they are.
    """

    program: Program
    params: dict[str, float]
    tensors: dict[str, Tensor]
    variant: Variant
    scale: float | None
    captured: dict[str, Any]
    slot_locations: dict[str, Location]
    definition: str = ""
    origin: str = ""
    orders: tuple[str, ...] = ()
    limits: dict[str, tuple[int, str]] = field(default_factory=dict)


def trace(variant: Variant) -> Trace:
    """Run the slots of ``variant`` once on symbols. The same class always gives the same program.

    Raises a subclass of AttnCompilerError that names the user's line; for what the user's own code raises that is a
    SlotFailedError, and the exception is its cause.
    """
    cls = type(variant)
    reserved = frozenset(cls._parameters) | frozenset(cls._tensors)
    rec = Recorder(_call_slot.__code__, reserved)
    view = _symbolic_view(variant, rec)
    locations = {
        name: location
        for name in SLOTS
        if (method := getattr(view, name, None)) is not None
        and getattr(Variant, name, None) is not getattr(method, "__func__", None)
        and (location := slot_location(method)) is not None
    }

    def run(slot: str, *arguments: object) -> Operand:
        rec.slot, rec.slot_location = slot, locations.get(slot)
        with UserCode(variant, slot, locations.get(slot)):
            return _call_slot(rec, cls.__name__, slot, getattr(view, slot), arguments)

    mask = rec.convert(run("mask", At(rec)), "bool")
    score = rec.convert(run("score", Symbol(Dot(), rec), At(rec)), "float")
    weight = rec.convert(run("normalize", Symbol(Score(), rec), Row(rec)), "float")
    output = rec.convert(run("output", Symbol(Value(), rec), OutputAt(rec)), "float")

    program = Program(
        name=cls.__name__,
        score=score,
        mask=mask,
        reductions=tuple(rec.reductions),
        weight=weight,
        kept=tuple(rec.kept.items()),
        output_reductions=tuple(rec.output_reductions),
        output=output,
        locations=rec.locations,
    )
    return _finish(program, variant, rec, locations)


# Python 3.11 parses wrongly when several threads parse at once (python/cpython#106905); calls in threads build kernels.
_SOURCES = threading.Lock()


def definition_of(trace: Trace) -> str:
    """The source of what was traced."""
    if trace.definition:
        return trace.definition
    cls = type(trace.variant)
    try:
        with _SOURCES:
            return inspect.getsource(cls)
    except (OSError, TypeError):  # a class made at a prompt has no file
        return f"class {cls.__name__} (source not available)"


def _call_slot(
    rec: Recorder,
    variant: str,
    slot: str,
    method: Callable[..., object],
    arguments: tuple[object, ...],
) -> Operand:
    """The boundary between the compiler and the user's code: no frame outside it is to blame for a mistake."""
    return _result(rec, variant, slot, method(*arguments))


def _symbolic_view(variant: Variant, rec: Recorder) -> Variant:
    """A second instance of the class whose parameters and tensors are symbols: what the slots see as ``self``."""
    cls = type(variant)
    view = object.__new__(cls)
    view.__dict__.update(variant.__dict__)
    for name, kind in cls._parameters.items():
        view.__dict__[name] = rec.symbol(Param(name, kind))
    for name, tensor in cls._tensors.items():
        declaration = tensor.declaration(name)
        if tensor.axes:
            view.__dict__[name] = TensorSymbol(declaration, (None,) * len(tensor.axes), rec)
        else:
            view.__dict__[name] = resolve(declaration, (), rec)
    return view


_WANTED: dict[str, Kind] = {
    "mask": "bool",
    "score": "float",
    "normalize": "float",
    "output": "float",
}


def _result(rec: Recorder, variant: str, slot: str, value: object) -> Operand:
    """The value a slot returned, if it is of the kind the slot is for."""
    wanted = _WANTED[slot]
    if isinstance(value, (Symbol, TensorSymbol, bool, int, float)) or is_torch_tensor(value):
        operand = rec.operand(value)
        found = kind_of_operand(operand)
        if (found == "bool") == (wanted == "bool"):
            return operand
        location = rec.locations.get(operand) if isinstance(operand, Expr) else None
        described = f"a {found}" if found != "int" else "an int"
    else:
        location, described = None, "nothing" if value is None else f"a {type(value).__name__}"
    fixes = {
        "mask": "return a comparison, such as at.k <= at.q, or True",
        "score": "return the new score; a condition belongs in mask()",
        "normalize": "return the weight of the key; a condition goes into where(condition, a, b)",
        "output": "return the new element of the output row",
    }
    raise errors.ReturnKindError(
        location=location or rec.slot_location,
        variant=variant,
        slot=slot,
        wanted=wanted,
        found=described,
        fix=fixes[slot] if value is not None else "add a return statement",
    )


def _finish(
    program: Program, variant: Variant, rec: Recorder, locations: dict[str, Location]
) -> Trace:
    """Declare what the program reads, in the order the class declares it, then what the trace added."""
    cls = type(variant)
    roots = [expr for _, expr in program.expressions()]
    used = {n.name for n in walk(*roots) if isinstance(n, Param)}
    loaded = loads_in(roots)
    params = [ParamDecl(n, k) for n, k in cls._parameters.items() if n in used]
    params += [
        ParamDecl(n, _kind_of_number(v), lifted=True) for n, v in rec.lifted.items() if n in used
    ]
    declared: list[TensorDecl] = [t.declaration(n) for n, t in cls._tensors.items() if n in loaded]
    declared += [d for n, d in rec.captured_declarations.items() if n in loaded]
    complete = replace(program, params=tuple(params), tensors=tuple(declared))
    tensors = dict(cls._tensors)
    for name, declaration in rec.captured_declarations.items():
        tensors[name] = Tensor(*declaration.axes, dtype=rec.captured[name].dtype)
    values = variant.parameters() | {n: v for n, v in rec.lifted.items() if n in used}
    return Trace(
        complete,
        values,
        tensors,
        variant,
        variant.scale,
        dict(rec.captured),
        locations,
        limits=rec.limits,
    )


def _kind_of_number(value: float) -> Kind:
    return "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
