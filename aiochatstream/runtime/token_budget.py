"""A number of tokens that members share, with a first-in-first-out queue for those that do not fit."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from aiochatstream.runtime.waiting_line import WaitingLine

Member = TypeVar("Member", bound=Hashable)


class TokenBudget(Generic[Member]):
    """Tokens that distinct members hold, at most ``size`` at a time.

    A member that does not fit holds up all later ones: a large one waits only for tokens of earlier members.

    size: number of tokens; None for no limit.
    waiting: members that wait for their tokens, in order.
    """

    def __init__(self) -> None:
        self.size: int | None = None
        self.waiting: WaitingLine[Member] = WaitingLine()
        self._used = 0
        self._tokens: dict[Member, int] = {}

    def check(self, tokens: int) -> None:
        """Raise ValueError if ``tokens`` exceed the budget, so that a member would wait permanently."""
        if self.size is not None and tokens > self.size:
            raise ValueError(f"tokens: must be at most {self.size}, not {tokens}.")

    def enqueue(self, member: Member, tokens: int) -> None:
        """Add a member at the end of the queue."""
        self.waiting.append(member)
        self._tokens[member] = tokens

    def grant(self) -> list[Member]:
        """Give the first members their tokens, as far as these fit, and return them."""
        granted: list[Member] = []
        while self.waiting:
            [member] = self.waiting.first(1)
            if self.size is not None and self._used + self._tokens[member] > self.size:
                break
            self.waiting.discard(member)
            self._used += self._tokens[member]
            granted.append(member)
        return granted

    def discard(self, member: Member) -> None:
        """Remove a member from the queue, or take its tokens back. Other objects have no effect."""
        if member not in self.waiting:
            self._used -= self._tokens.get(member, 0)
        self.waiting.discard(member)
        self._tokens.pop(member, None)
