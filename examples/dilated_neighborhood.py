"""Dilated neighborhood attention: the window's keys lie ``dilation`` apart.

Dilated Neighborhood Attention Transformer (Hassani and Shi, 2022, arXiv:2209.15001): the axis splits into the groups
c mod dilation; inside its group each query sees the window around it, moved inward at the borders.
"""

from attncompiler.dsl import Variant, neighborhood


class DilatedNeighborhood(Variant):
    """One axis over all keys; groups may differ in length by one."""

    window = 9
    dilation = 4

    def mask(self, at):
        return neighborhood(at, self.window, dilation=self.dilation)
