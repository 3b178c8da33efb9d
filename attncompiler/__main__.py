"""Runs the command line as ``python -m attncompiler``."""

from __future__ import annotations

from attncompiler.cli import main

main()
