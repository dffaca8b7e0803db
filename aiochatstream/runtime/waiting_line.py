"""A first-in-first-out queue whose members may leave anywhere and know their positions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)

MIN_PLACES = 64
"""Minimum number of places in the tree; it grows with the queue."""


class WaitingLine(Generic[Member]):
    """A queue of distinct members, first in, first out.

    Each member that joins has the next place. Its position is its place less the number of places before it that are
    empty, which a Fenwick tree counts: leaving and asking for a position take a step for each bit of the place, at most
    18 steps in a queue of 100,000. When all places of the tree have been used, those that wait are numbered anew, which
    is rare: the tree has at least twice as many places as the queue had members.
    """

    def __init__(self) -> None:
        self._places: OrderedDict[Member, int] = OrderedDict()
        self._empty = [0] * (MIN_PLACES + 1)
        """Fenwick tree: the element at ``place`` is the number of empty places among the last ``place & -place``."""
        self._last = 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._places)

    def __contains__(self, member: Member) -> bool:
        return member in self._places

    def first(self, count: int) -> list[Member]:
        """Return the first ``count`` members, or all if there are fewer."""
        return list(islice(self._places, count))

    def append(self, member: Member) -> None:
        """Add a member at the end."""
        if self._last + 1 == len(self._empty):
            self._renumber()
        self._last += 1
        self._places[member] = self._last

    def discard(self, member: Member) -> None:
        """Remove a member if it is in the queue."""
        place = self._places.pop(member, len(self._empty))
        while place < len(self._empty):
            self._empty[place] += 1
            place += place & -place

    def position(self, member: Member) -> int:
        """Return the position of a member, 1 for the first; 0 for any other object."""
        position = place = self._places.get(member, 0)
        while place:
            position -= self._empty[place]
            place &= place - 1
        return position

    def _renumber(self) -> None:
        for place, member in enumerate(self._places, 1):
            self._places[member] = place
        self._last = len(self._places)
        self._empty = [0] * (max(MIN_PLACES, 2 * self._last) + 1)
