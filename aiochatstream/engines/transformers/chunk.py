"""Chunks of new tokens, and the sizes of steps."""

from __future__ import annotations

from dataclasses import dataclass

TOKEN_MULTIPLE = 16
"""Multiple to which the number of tokens of a larger step is rounded up. oneDNN compiles code for each new size, which
takes longer than the padding, and caches the last thousand sizes."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one row, from position ``start`` on.

    scored: True if the logits of all tokens are needed, not only the last token's.
    """

    row: int
    start: int
    ids: list[int]
    scored: bool = False

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


def padded_size(tokens: int) -> int:
    """Return the number of tokens, including padding, that a step with ``tokens`` tokens computes."""
    return tokens if tokens <= TOKEN_MULTIPLE else round_up(tokens, TOKEN_MULTIPLE)


def round_up(number: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-number // multiple) * multiple
