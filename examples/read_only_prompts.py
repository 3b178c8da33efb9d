"""Learned prompts that read the tokens and that nothing reads, themselves included.

Read-only Prompt Optimization for Vision-Language Few-shot Learning (Lee et al., 2023): the last ``prompts`` keys are
masked for every query, k < N - prompts.
"""

from attncompiler.dsl import Variant


class ReadOnlyPrompts(Variant):
    """The prompts stand at the end of the sequence; the features of the tokens stay those of the frozen model."""

    prompts: int = 4

    def mask(self, at):
        return at.k < at.N - self.prompts
