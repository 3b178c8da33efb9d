"""Fills the templates of a GPU language, ``templates/<language>``, and adds what they call of its ``math.py``."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2

from attncompiler.backends.triton_math import math_for

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def filled(language: str, name: str, context: DataclassInstance) -> str:
    """The text of a template; ``context`` has a field for each of its holes, but for the functions it calls."""
    template = _environment(language).get_template(name)
    fields: dict[str, Any] = {f.name: getattr(context, f.name) for f in dataclasses.fields(context)}
    text = template.render(**fields, math=math_for(template.render(**fields, math=""), language))
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


@cache
def _environment(language: str) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("attncompiler.templates", language),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
