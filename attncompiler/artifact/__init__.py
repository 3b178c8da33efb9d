"""Turns a compiled variant into a Python package of its own that runs without attncompiler."""
