"""Prints a Program as plain torch over the whole [B, H, M, N] grid: fills ``templates/package/dense.py.j2``."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from types import MappingProxyType
from typing import assert_never

import jinja2

from attncompiler.ir.expr import (
    Call,
    Const,
    Dot,
    Expr,
    Index,
    Load,
    Local,
    OldStat,
    OutGrad,
    Param,
    Score,
    Size,
    Stat,
    Value,
    WeightGrad,
    children,
    kind_of,
    stats_in,
    walk,
)
from attncompiler.ir.ops import OPS
from attncompiler.ir.program import Program, Reduction, TensorDecl

# How tightly Python's operators bind: comparisons are looser than & and |.
BINDING: dict[str, int] = {
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), 1),
    **dict.fromkeys(("or", "bitor"), 2),
    "bitxor": 3,
    **dict.fromkeys(("and", "bitand"), 4),
    **dict.fromkeys(("shl", "shr"), 5),
    **dict.fromkeys(("add", "sub"), 6),
    **dict.fromkeys(("mul", "div", "floordiv", "mod"), 7),
    **dict.fromkeys(("neg", "not"), 8),
    "pow": 9,
}
ATOM = 10
INFIX = {"and": "&", "or": "|"}
FUNCTIONS = {"min": "torch.minimum", "max": "torch.maximum", "bit_length": "_bit_length"}
# Names that the template gives to things of its own.
_WORDS = """
    q k v q_start scale return_stats dtype real batch heads rows depth groups keys width shared grid pair allowed empty
    dot score weight value out stats statistics counted identities kept given values tensors torch math
"""
TAKEN = frozenset(_WORDS.split()) | {f"at_{axis}" for axis in (*"bhgqkdBHGMND", "Dv")}


@dataclass(frozen=True, slots=True)
class Formula:
    """One formula: names for what it uses more than once, in order, then its value.

    ``operand`` is the value as something whose method is called.
    """

    lets: list[tuple[str, str]]
    text: str
    operand: str


@dataclass(frozen=True, slots=True)
class Named:
    """A parameter or a tensor: its name in the call, its name in the formulas, and how it is made a tensor."""

    name: str
    local: str
    kind: str


@dataclass(frozen=True, slots=True)
class ReductionText:
    """``name = op(body)``."""

    name: str
    op: str
    body: Formula


@dataclass(frozen=True, slots=True)
class DenseContext:
    """What the template is filled with, besides what the caller gives it.

    ``local`` gives every argument's name in the formulas.
    """

    local: dict[str, str]
    tensors: list[Named]
    params: list[Named]
    used: frozenset[str]
    mask: Formula | None
    score: Formula
    reductions: list[ReductionText]
    weight: Formula
    kept: list[tuple[str, Formula]]
    output_reductions: list[ReductionText]
    output: Formula


@dataclass(frozen=True, slots=True)
class _Text:
    code: str
    binding: int = ATOM
    literal: bool = False


def dense_context(
    program: Program, values: Mapping[str, float], arguments: Iterable[str] = ()
) -> DenseContext:
    """The formulas of a program.

    ``values`` gives those of its lifted literals, ``arguments`` names further arguments of the call.
    """
    return _Printer(program, values, arguments).context()


def render_dense(context: DenseContext, **more: object) -> str:
    """The source of ``dense.py``."""
    fields = {f.name: getattr(context, f.name) for f in dataclasses.fields(context)}
    return package_environment().get_template("dense.py.j2").render(**fields, **more)


@cache
def package_environment() -> jinja2.Environment:
    """The templates of a package's own files."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("attncompiler.templates", "package"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


class _Printer:
    def __init__(
        self, program: Program, values: Mapping[str, float], arguments: Iterable[str]
    ) -> None:
        self.program = program
        self.literals = {p.name: values[p.name] for p in program.params if p.lifted}
        self.declared = {t.name: t for t in program.tensors}
        read = [p.name for p in program.params if not p.lifted] + list(self.declared)
        own = dict.fromkeys((*arguments, *read))
        stats = [r.name for r in (*program.reductions, *program.output_reductions)]
        self.taken = {*own, *stats, *TAKEN}
        self.local = {name: name if name not in TAKEN else self._free(f"{name}_") for name in own}
        self.used: set[str] = set()

    def _free(self, stem: str) -> str:
        name = next(n for i in count() if (n := stem + "_" * i) not in self.taken)
        self.taken.add(name)
        return name

    def context(self) -> DenseContext:
        p = self.program
        # The output slot reads statistics as the caller gets them.
        kept = {e: _Text(f'stats["{name}"][..., None]') for name, e in p.kept if stats_in(e)}
        filled = {
            "mask": None if p.mask is Const(True) else self._formula(p.mask),
            "score": self._formula(p.score, pairs=True),
            "reductions": self._reductions(p.reductions, pairs=True),
            "weight": self._formula(p.weight, pairs=True),
            "kept": [(name, self._formula(e)) for name, e in p.kept],
            "output_reductions": self._reductions(p.output_reductions, known=kept),
            "output": self._formula(p.output, known=kept),
        }
        kinds = {x.name: x.kind for x in p.params} | {x.name: x.kind for x in p.tensors}
        named = {n: Named(n, local, kinds[n]) for n, local in self.local.items() if n in kinds}
        return DenseContext(
            local=self.local,
            tensors=[x for n, x in named.items() if n in self.declared],
            params=[x for n, x in named.items() if n not in self.declared],
            used=frozenset(self.used),
            **filled,  # type: ignore[arg-type]
        )

    def _reductions(
        self,
        reductions: Sequence[Reduction],
        *,
        pairs: bool = False,
        known: Mapping[Expr, _Text] = MappingProxyType({}),
    ) -> list[ReductionText]:
        return [
            ReductionText(r.name, r.op, self._formula(r.body, pairs=pairs, known=known))
            for r in reductions
        ]

    def _formula(
        self,
        expr: Expr,
        *,
        pairs: bool = False,
        known: Mapping[Expr, _Text] = MappingProxyType({}),
    ) -> Formula:
        """``pairs`` says that the formula is asked at pairs that are not allowed, too, and has a gradient.

        ``known`` gives subexpressions that have been computed.
        """
        nodes = list(walk(expr, known=known))
        users = Counter(c for n in nodes for c in children(n))
        memo: dict[Expr, _Text] = dict(known)
        lets: list[tuple[str, str]] = []
        for node in nodes:
            memo[node] = self._text(node, memo, pairs)
            large = isinstance(node, Call) and len(list(walk(node))) > 3
            if users[node] > 1 and large:
                name = self._free(f"t{len(lets)}")
                self.taken.discard(name)  # each formula is a scope of its own
                lets.append((name, memo[node].code))
                memo[node] = _Text(name)
        return Formula(lets, self._tensor(memo[expr]), self._inside(memo[expr], ATOM))

    def _text(self, node: Expr, memo: Mapping[Expr, _Text], pairs: bool) -> _Text:
        match node:
            case Const(value):
                return _literal(value)
            case Param(name) if name in self.literals:
                return _literal(self.literals[name])
            case Param("q_start"):
                return _Text("q_start", literal=True)
            case Param(name):
                return _Text(self.local[name])
            case Size(name):
                self.used |= {name, "number"}
                return _Text(f"at_{name}")
            case Index(name):
                self.used.add(name)
                return _Text(f"at_{name}")
            case Dot():
                return _Text("dot")
            case Score():
                return _Text("score")
            case Value():
                return _Text("value")
            case Stat(name):
                return _Text(name)
            case Load(tensor, indices, kind):
                code = self._read(self.declared[tensor], indices, [memo[i] for i in indices])
                return _Text(f"pair({code})" if pairs and kind == "float" else code)
            case Call(op, args):
                return self._call(op, args, [memo[a] for a in args])
            case OldStat() | OutGrad() | WeightGrad() | Local():
                raise TypeError(f"a program has no {type(node).__name__}")
            case _:
                assert_never(node)

    def _read(self, tensor: TensorDecl, indices: Sequence[Expr], texts: list[_Text]) -> str:
        name = self.local[tensor.name]
        if not indices:
            return name
        listed = ", ".join(t.code for t in texts)
        row = Call("sub", (Index("q"), Param("q_start", "int")))
        inside = all(
            index is (row if axis == "q" else axis in tuple("bhgkd") and Index(axis))  # type: ignore[arg-type]
            for axis, index in zip(tensor.axes, indices, strict=True)
        )
        if inside:
            return f"{name}[{listed}]"
        self.used.add("read")
        return f"_read({name}, {listed})"

    def _call(self, op: str, args: Sequence[Expr], texts: list[_Text]) -> _Text:
        first = texts[0]
        whole = kind_of(args[-1]) != "float"
        match op:
            case "neg" | "not":
                code = self._inside(first, BINDING[op])
                return _Text(f"{'-' if op == 'neg' else '~'}{code}", BINDING[op])
            case "floordiv" | "mod" if whole and not (texts[1].literal and _is_nonzero(args[1])):
                self.used.add("divide")
                name = "_quotient" if op == "floordiv" else "_remainder"
                return _Text(f"{name}({self._tensor(first)}, {self._tensor(texts[1])})")
            case "to_float":
                return _Text(f"{self._inside(first, ATOM)}.to(real)")
            case "to_bool":
                return _Text(f"{self._inside(first, 2)} != 0", BINDING["ne"])
            case "to_int":
                code = self._inside(first, ATOM)
                return _Text(f"{code}{'' if whole else '.trunc()'}.to(torch.int64)")
            case _ if OPS[op].infix:
                if all(t.literal for t in texts):
                    texts = [_Text(self._tensor(first)), texts[1]]
                own = BINDING[op]
                # Comparisons would chain, and ** groups from the right.
                left = _wrapped(texts[0], own + (op in ("pow", *_COMPARISONS)))
                return _Text(
                    f"{left} {INFIX.get(op, OPS[op].infix)} {_wrapped(texts[1], own + 1)}", own
                )
            case _:
                if op == "bit_length":
                    self.used.add(op)
                inner = ", ".join(self._tensor(t) for t in texts)
                return _Text(f"{FUNCTIONS.get(op, f'torch.{op}')}({inner})")

    def _tensor(self, text: _Text) -> str:
        """A text as an argument of a function of tensors."""
        if not text.literal:
            return text.code
        self.used.add("number")
        return f"_number({text.code})"

    def _inside(self, text: _Text, binding: int) -> str:
        return self._tensor(text) if text.literal else _wrapped(text, binding)


_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


def _wrapped(text: _Text, binding: int) -> str:
    return text.code if text.binding >= binding else f"({text.code})"


def _literal(value: float) -> _Text:
    code = repr(value)
    if code.lstrip("-") in ("inf", "nan"):
        code = code.replace("inf", "math.inf").replace("nan", "math.nan")
    return _Text(code, BINDING["neg"] if code.startswith("-") else ATOM, literal=True)


def _is_nonzero(expr: Expr) -> bool:
    return isinstance(expr, Const) and expr.value != 0
