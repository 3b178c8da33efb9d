"""Turns a machine into evidence: what `attncompiler bench` measures without a file, and the tables and plots of it."""
