"""What was computed for earlier sequences, kept for those that begin the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

Tokens = list[tuple[torch.Tensor, ...]]
"""Keys and values of each layer, [heads, tokens, head size]."""


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """A sequence, its keys and values, and the only one whom they are for ("": everyone)."""

    owner: str
    ids: np.ndarray
    tokens: Tokens
    size: int
    """In bytes."""


class PrefixPool:
    """Sequences that are over, at most ``max_bytes`` of them; the least recently used goes first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: list[Kept] = []  # the most recently used last
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Keep nothing."""
        self._kept, self.size = [], 0

    def match(self, ids: Sequence[int], owner: str = "") -> tuple[Tokens, int]:
        """Of what ``owner`` has that begins as ``ids`` does, the longest: its tokens, and how many are the same."""
        wanted = np.asarray(ids)
        longest, same = None, 0
        for kept in self._of(owner):
            more = same < min(len(kept.ids), len(wanted)) and kept.ids[same] == wanted[same]
            if more and (length := common(kept.ids, wanted)) > same:
                longest, same = kept, length
        if longest is None:
            return [], 0
        self._kept.remove(longest)
        self._kept.append(longest)
        return longest.tokens, same

    def worth(self, ids: Sequence[int], size: int, owner: str = "") -> bool:
        """Whether ``ids``, of ``size`` bytes, fits and is not the beginning of a sequence that is here."""
        if size > self._max_bytes:
            return False
        wanted = np.asarray(ids)
        return not any(begins(kept.ids, wanted) for kept in self._of(owner))

    def put(self, ids: Sequence[int], tokens: Tokens, owner: str = "") -> None:
        """Keep a sequence for ``owner``, in the place of those that it continues."""
        new = Kept(owner, np.asarray(ids), tokens, sum(one.nbytes for layer in tokens for one in layer))
        if new.size > self._max_bytes:
            return
        continued = [kept for kept in self._of(owner) if begins(new.ids, kept.ids)]
        self._kept = [kept for kept in self._kept if kept not in continued] + [new]
        self.size = sum(kept.size for kept in self._kept)
        while self.size > self._max_bytes:
            self.size -= self._kept.pop(0).size

    def _of(self, owner: str) -> list[Kept]:
        return [kept for kept in self._kept if kept.owner == owner]


def begins(sequence: np.ndarray, beginning: np.ndarray) -> bool:
    """Whether ``sequence`` begins so. Most do not, which the last number of the beginning tells at once."""
    end = len(beginning)
    return len(sequence) >= end > 0 and sequence[end - 1] == beginning[-1] and common(sequence, beginning) == end


def common(first: np.ndarray, second: np.ndarray) -> int:
    """How many numbers from the beginning on are the same."""
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length
