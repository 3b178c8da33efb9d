"""The backends that packages can be made with, by name; a new one is a line here and a file beside this one."""

from __future__ import annotations

from attncompiler.artifact.backend import Backend
from attncompiler.artifact.cpp import CPP
from attncompiler.artifact.tilelang import TILELANG
from attncompiler.artifact.triton import TRITON

BACKENDS: dict[str, Backend] = {b.name: b for b in (CPP, TRITON, TILELANG)}
