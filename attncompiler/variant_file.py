"""Turns the path of a user's Python file into the variant it defines, or into an error that shows the line."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from attncompiler.caller import class_location, raised_at
from attncompiler.errors import AttnCompilerError, MissingParameterError, nearest
from attncompiler.ir.location import Location

if TYPE_CHECKING:
    from attncompiler.dsl import Variant


class UsageError(AttnCompilerError):
    """A command that cannot start: the command line asks for something that is not there."""


class FileMissingError(UsageError):
    """A path that leads to no Python file."""

    message = "{path}: {detail}"
    advice = "write a starter file with: attncompiler new NAME"


class NoVariantError(UsageError):
    """A file without a variant."""

    message = "{path} defines no variant"
    advice = "define a class that inherits from attncompiler.dsl.Variant (attncompiler new NAME writes one)"


class SeveralVariantsError(UsageError):
    """A file with several variants and nothing that says which."""

    message = "{path} defines several variants: {names}"
    advice = "choose one: --name {first}"


class UnknownVariantError(UsageError):
    """A ``--name`` that the file does not define."""

    message = "{path} defines no variant called {name!r}"
    advice = "it defines {known}"


class SettingError(UsageError):
    """A ``--set`` that is no ``parameter=value``."""

    message = "--set {text!r}: {detail}"
    advice = "write --set parameter=value, for example --set window=128"


class VariantFileError(AttnCompilerError):
    """A file that Python cannot run to its end."""

    message = "{path} stops with {kind}: {detail}"
    advice = "run it alone to see the whole traceback: python {path}"


def load_variant(path: Path, name: str | None = None, settings: Sequence[str] = ()) -> Variant:
    """The variant that ``path`` defines, with the parameters of ``settings`` (``"window=128"``).

    ``name`` chooses a class, or an instance made at the top of the file, when there are several.
    """
    from attncompiler.dsl import Variant

    module = _run(path)
    classes: dict[str, type[Variant]] = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Variant)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    }
    made = {key: value for key, value in vars(module).items() if isinstance(value, Variant)}
    known: dict[str, type[Variant] | Variant] = {**classes, **made}
    if not known:
        raise NoVariantError(path=path)
    if name is None:
        choices = list(classes or made)
        if len(choices) > 1:
            raise SeveralVariantsError(path=path, names=", ".join(choices), first=choices[0])
        name = choices[0]
    if name not in known:
        raise UnknownVariantError(path=path, name=name, known=nearest(name, known))
    chosen = known[name]
    values = _parse(settings)
    if isinstance(chosen, type):
        return _made(chosen, values)
    if values:
        detail = f"{name} is already made in the file"
        raise SettingError(text=settings[0], detail=detail)
    return chosen


def _made(cls: type[Variant], values: Mapping[str, bool | int | float]) -> Variant:
    """An instance; a mistake in ``--set`` is shown at the class, since no line of the user makes the instance."""
    try:
        return cls(**values)
    except AttnCompilerError as error:
        error.location = class_location(cls)
        if isinstance(error, MissingParameterError):
            missing = [n for n in cls._parameters if n not in values and not hasattr(cls, n)]
            error.remedy = (
                f"give a default in the class, or {' '.join(f'--set {n}=...' for n in missing)}"
            )
        raise


def _run(path: Path) -> ModuleType:
    if not path.is_file():
        detail = "is a folder" if path.is_dir() else "no such file"
        raise FileMissingError(path=path, detail=detail)
    # The module stays in sys.modules, under a name of its own, so that classes find their source and pickle.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    module_name = f"attncompiler_variant_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise FileMissingError(path=path, detail="is no Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(
        0, folder
    )  # neighbouring files can be imported, as when the file is run by itself
    finished = False
    try:
        spec.loader.exec_module(module)
        finished = True
    except AttnCompilerError:
        raise
    except SyntaxError as error:
        raise _failed(path, error, _syntax_location(path, error)) from error
    except Exception as error:  # the user's own code: it may raise anything
        raise _failed(path, error, raised_at(spec.origin or "", error.__traceback__)) from error
    finally:
        sys.path.remove(folder)
        if not finished:
            del sys.modules[module_name]
    return module


def _failed(path: Path, error: Exception, location: Location | None) -> VariantFileError:
    detail = error.msg if isinstance(error, SyntaxError) else str(error)
    return VariantFileError(
        path=path, kind=type(error).__name__, detail=detail or "no message", location=location
    )


def _syntax_location(path: Path, error: SyntaxError) -> Location:
    line, column = error.lineno or 1, max((error.offset or 1) - 1, 0)
    same_line = error.end_lineno == error.lineno
    end = (error.end_offset or 0) - 1 if same_line else 0
    return Location(error.filename or str(path), line, column, max(end, column + 1))


def _parse(settings: Sequence[str]) -> Mapping[str, bool | int | float]:
    values: dict[str, bool | int | float] = {}
    for text in settings:
        key, equals, literal = text.partition("=")
        if not equals or not key.isidentifier():
            raise SettingError(text=text, detail="not of the form parameter=value")
        try:
            value = ast.literal_eval(literal)
        except (SyntaxError, ValueError) as error:
            raise SettingError(text=text, detail=f"{literal!r} is no number") from error
        if not isinstance(value, bool | int | float):
            raise SettingError(text=text, detail=f"{literal!r} is no number")
        values[key] = value
    return values
