"""Turns printed kernels into operators: builds and caches libraries, checks calls, launches."""
