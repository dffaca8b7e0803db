"""Positions in a queue whose members leave anywhere."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiochatstream.runtime.waiting_line import MIN_PLACES, WaitingLine


class WaitingLineMachine(RuleBasedStateMachine):
    """Join and leave in any order, compared with a list. The queue becomes long enough to be numbered anew."""

    def __init__(self) -> None:
        super().__init__()
        self.line: WaitingLine[int] = WaitingLine()
        self.members: list[int] = []
        self.last = 0

    @rule(count=st.integers(1, MIN_PLACES))
    def join(self, count: int) -> None:
        for self.last in range(self.last + 1, self.last + count + 1):  # noqa: B020 - the loop continues the numbers
            self.line.append(self.last)
            self.members.append(self.last)

    @rule(count=st.integers(1, MIN_PLACES), at=st.floats(0, 1, exclude_max=True))
    def leave(self, count: int, at: float) -> None:
        for _ in range(min(count, len(self.members))):
            member = self.members.pop(int(at * len(self.members)))
            self.line.discard(member)
            self.line.discard(member)  # no effect
            assert (self.line.position(member), member in self.line) == (0, False)

    @invariant()
    def matches_the_list(self) -> None:
        assert list(self.line) == self.members
        assert len(self.line) == len(self.members)
        assert self.line.first(3) == self.members[:3]
        assert [self.line.position(member) for member in self.members] == list(range(1, len(self.members) + 1))


TestWaitingLine = WaitingLineMachine.TestCase
