"""Choosing configurations: what one takes, what it should cost, which to keep."""
