"""Video tokens: the band around the query's place in a frame halves each time the frame distance doubles.

Radial Attention (Li et al., 2025, arXiv:2506.19852), the pattern before it is rounded to blocks: with
decay = 2 ** bits(frame) / 2 ** bits(distance), frames at most one apart see each other whole; further ones
inside max(decay, block), and once decay < block only every (block / decay)-th frame. All see the first frame.
"""

from attncompiler.dsl import Variant, bit_length, maximum


class Radial(Variant):
    """``frame`` tokens make a frame, ``block`` is the narrowest band kept (128 in the paper's models)."""

    frame = 24
    block = 8

    def mask(self, at):
        distance = abs(at.q // self.frame - at.k // self.frame)
        offset = abs(at.q % self.frame - at.k % self.frame)
        reach = 1 << self.frame.bit_length()
        halvings = bit_length(distance)
        every = maximum((self.block << halvings) // reach, 1)
        band = maximum(reach >> halvings, self.block)
        far = (distance % every == 0) & (offset <= band)
        return (distance <= 1) | far | (at.k < self.frame)
