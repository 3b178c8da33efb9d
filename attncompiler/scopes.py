"""``at`` and ``row`` as the slots see them: turns attributes into index symbols, reductions into statistics."""

from __future__ import annotations

from typing import ClassVar, cast

from attncompiler import errors
from attncompiler.ir.expr import Axis, Index, Size, SizeName, Stat, axes_of
from attncompiler.ir.program import ReduceOp
from attncompiler.recorder import Recorder
from attncompiler.symbols import Symbol

_SIZES = ("B", "H", "G", "M", "N", "D", "Dv")


class At:
    """The pair: indices ``b h g q k`` and sizes ``B H G M N D Dv``."""

    _axes: ClassVar[tuple[str, ...]] = ("b", "h", "g", "q", "k")
    _name: ClassVar[str] = "at"

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __getattr__(self, name: str) -> Symbol:
        if name in self._axes:
            return self._recorder.symbol(Index(cast(Axis, name)))
        if name in _SIZES:
            return self._recorder.symbol(Size(cast(SizeName, name)))
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._unknown(name)

    def _unknown(self, name: str) -> errors.UnknownIndexError:
        return errors.UnknownIndexError(
            location=self._recorder.here(),
            owner=self._name,
            name=name,
            slot=self._recorder.slot,
            fix=self._advice(name),
        )

    def _advice(self, name: str) -> str:
        if name in ("max", "min", "sum", "count", "mean"):
            return f"reductions over the keys of a row belong in normalize(self, s, row): row.{name}(...)"
        if name == "d":
            return "the value feature exists only in output()"
        if name == "stats":
            return "kept statistics exist only in output()"
        methods = [n for n, x in vars(type(self)).items() if callable(x) and not n.startswith("_")]
        known = " ".join((*methods, *self._axes, *_SIZES))
        return f"{self._name} has {known}"

    def _statistic(self, op: ReduceOp, value: object, *, over_features: bool) -> Stat:
        rec = self._recorder
        body = rec.convert(rec.operand(value), "float")
        return rec.reduction(op, body, over_features=over_features)


class Row(At):
    """The row in ``normalize``: reductions over its allowed keys, the index symbols and ``keep``."""

    _name = "row"

    def max(self, value: object) -> Symbol:
        """Largest value over the allowed keys; -inf when there are none."""
        return self._recorder.symbol(self._statistic("max", value, over_features=False))

    def min(self, value: object) -> Symbol:
        """Smallest value over the allowed keys; +inf when there are none."""
        return self._recorder.symbol(self._statistic("min", value, over_features=False))

    def sum(self, value: object) -> Symbol:
        """Sum over the allowed keys; 0 when there are none."""
        return self._recorder.symbol(self._statistic("sum", value, over_features=False))

    def count(self, condition: object = True) -> Symbol:
        """How many allowed keys there are, or how many of them fulfil a condition, as a float."""
        holds = self._recorder.convert(self._recorder.operand(condition), "bool")
        return self.sum(Symbol(holds, self._recorder))

    def mean(self, value: object) -> Symbol:
        """Mean over the allowed keys; nan when there are none."""
        return self.sum(value) / self.count()

    def keep(self, name: str, value: object) -> None:
        """Hand a statistic of the row to the caller under ``name`` (and to ``output`` as ``at.stats.name``)."""
        rec = self._recorder
        expr = rec.convert(rec.operand(value), "float")
        detail = fix = ""
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            detail, fix = "the name is no identifier", "use a name such as lse"
        elif name in rec.kept and rec.kept[name] is not expr:
            detail, fix = "the name is taken", "choose another name"
        elif "k" in axes_of(expr):
            detail, fix = "the value differs from key to key", "reduce it first: row.sum(...)"
        if detail:
            raise errors.KeepError(location=rec.here(), name=name, detail=detail, fix=fix)
        rec.kept[name] = expr


class OutputAt(At):
    """The output element: indices ``b h g q d``, sizes, kept statistics and reductions over the features."""

    _axes = ("b", "h", "g", "q", "d")

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.stats = Kept(recorder)

    def max(self, value: object) -> Symbol:
        """Largest value over the features."""
        return self._recorder.symbol(self._statistic("max", value, over_features=True))

    def min(self, value: object) -> Symbol:
        """Smallest value over the features."""
        return self._recorder.symbol(self._statistic("min", value, over_features=True))

    def sum(self, value: object) -> Symbol:
        """Sum over the features."""
        return self._recorder.symbol(self._statistic("sum", value, over_features=True))

    def mean(self, value: object) -> Symbol:
        """Mean over the features."""
        total = self.sum(value)
        return total / Symbol(Size("Dv"), self._recorder)

    def _advice(self, name: str) -> str:
        if name == "k":
            return "the output has no key any more; keep a row statistic with row.keep and read at.stats"
        return super()._advice(name)


class Kept:
    """The statistics that ``normalize`` kept, by name."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __getattr__(self, name: str) -> Symbol:
        rec = self._recorder
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in rec.kept:
            known = errors.nearest(name, rec.kept)
            raise errors.UnknownIndexError(
                location=rec.here(),
                owner="at.stats",
                name=name,
                slot=rec.slot,
                fix=f"normalize keeps {known}"
                if known
                else "keep it in normalize: row.keep(name, value)",
            )
        return rec.symbol(rec.kept[name])
