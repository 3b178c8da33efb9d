"""The parts of a package that say what it computes: dense.py, the variant's own torch code, the order of tokens."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attncompiler.artifact.arguments import Argument, arguments_of
from attncompiler.artifact.carried import Carried, CarryError, carried
from attncompiler.artifact.portable import copied
from attncompiler.backends.torch_dense import dense_context, package_environment, render_dense
from attncompiler.caller import class_location
from attncompiler.frontend import Trace, definition_of
from attncompiler.variant import Variant

if TYPE_CHECKING:
    from attncompiler.compiler import Compilation
    from attncompiler.layouts import Boxes

# The folder of a package that holds copies of run-time modules.
SUPPORT = "support"


@dataclass(frozen=True)
class Definition:
    """What a package carries of a variant besides kernels.

    Raises CarryError, when made, for what it cannot carry: torch tensors that formulas captured, and code of
    ``prepare`` and ``sample`` that needs more than torch.
    """

    compilation: Compilation

    def __post_init__(self) -> None:
        for name in self.trace.captured:
            raise CarryError(
                location=next(iter(self.trace.slot_locations.values()), None),
                owner=f"{self.name} ({name})",
                detail="a formula reads a torch tensor that was made outside of it",
                fix='declare it, bias = Tensor("h"), and pass it at the call',
            )
        if any(argument.name == "dtype" for argument in self.arguments):
            raise CarryError(
                location=class_location(type(self.variant)),
                owner=f"{self.name}.dtype",
                detail="its dense definition has an argument of that name",
                fix="choose another name",
            )
        _ = self.code

    @property
    def trace(self) -> Trace:
        """The traced variant; with a layout its program is the arranged one."""
        return self.compilation.trace

    @property
    def variant(self) -> Variant:
        """The variant itself."""
        return self.trace.variant

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.trace.program.name

    @property
    def layout(self) -> Boxes | None:
        """The order of tokens, where positions make a difference."""
        layout: Boxes | None = self.variant.layout if self.trace.orders else None
        return layout

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """Which methods of ordinary torch the variant has of its own."""
        cls = type(self.variant)
        return tuple(
            name
            for name in ("prepare", "sample")
            if inspect.getattr_static(cls, name, None)
            is not inspect.getattr_static(Variant, name, None)
        )

    @cached_property
    def code(self) -> Carried | None:
        """Their source."""
        return carried(self.variant, self.slots) if self.slots else None

    @cached_property
    def arguments(self) -> list[Argument]:
        """The keywords of a call."""
        return arguments_of(self.trace)

    @property
    def scale(self) -> float | None:
        """The scale of a call that gives none; None for 1/sqrt(D)."""
        return self.trace.params.get("scale", self.trace.scale)

    def context(self) -> dict[str, Any]:
        """What templates may ask."""
        return {
            "name": self.name,
            "definition": definition_of(self.trace).splitlines(),
            "arguments": self.arguments,
            "declared": {n: tensor.axes for n, tensor in type(self.variant)._tensors.items()},
            "carried": self.code is not None,
            "prepares": "prepare" in self.slots,
            "by_caller": self.layout is not None and self.layout.permuted_by == "caller",
            "layout": self.layout,
            "orders": self.trace.orders,
            "scale": self.scale,
            "scale_parameter": self.trace.params.get("scale"),
            "code": self.code,
            "slots": self.slots,
        }

    def files(self) -> dict[str, str]:
        """dense.py and what it imports."""
        context = self.context()
        # Without the rewriting for a layout: formulas mean row-major positions.
        formulas = dense_context(
            self.compilation.steps[0][1], self.trace.params, (a.name for a in self.arguments)
        )
        files = {"dense.py": render_dense(formulas, **context)}
        if self.code is not None:
            files["carried.py"] = rendered("carried.py.j2", context)
        if self.layout is not None:
            files["layout.py"] = rendered("layout.py.j2", context)
        return files | support_files(self.modules())

    def modules(self) -> tuple[str, ...]:
        """The run-time modules that these files need."""
        prepared = ("runtime.prepared", "runtime.sampled") if self.code is not None else ()
        arranged = ("runtime.arrangement", "layouts") if self.layout is not None else ()
        return (*prepared, *arranged)


def rendered(template: str, context: dict[str, Any]) -> str:
    """One of the templates of a package's own files."""
    return package_environment().get_template(template).render(**context)


def support_files(
    modules: tuple[str, ...], libraries: frozenset[str] = frozenset({"torch"})
) -> dict[str, str]:
    """Copies of run-time modules, by their path in a package."""
    return {f"{SUPPORT}/{path}": text for path, text in copied(modules, libraries).items()}
