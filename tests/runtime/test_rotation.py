"""Rates of regular callbacks."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

from aiochatstream.runtime.rotation import BATCH, INTERVAL, PAUSE, Rotation
from tests.virtual_time import run_in_virtual_time


@pytest.mark.parametrize(
    ("members", "rounds"),
    [
        (1, 20),
        (500, 20),  # as many as have a turn in each interval
        (10_000, 1),
    ],
)
def test_each_member_has_its_turn_twice_a_second_and_all_have_at_most_1000(members: int, rounds: int) -> None:
    async def main() -> list[tuple[float, int]]:
        loop = asyncio.get_running_loop()
        calls: list[tuple[float, int]] = []
        rotation: Rotation[int] = Rotation(lambda member: calls.append((loop.time(), member)))
        for member in range(members):
            rotation.restart(member)
        await asyncio.sleep(10.25)
        for member in range(members):
            rotation.discard(member)
        assert len(rotation) == 0
        count = len(calls)
        await asyncio.sleep(10)
        assert len(calls) == count, "called back after discard"
        return calls

    calls = run_in_virtual_time(main())
    times = sorted({at for at, _ in calls})
    assert max(Counter(at for at, _ in calls).values()) <= BATCH
    assert min((after - before for before, after in pairwise(times)), default=1) > PAUSE * 0.99
    counts = Counter(member for _, member in calls)
    assert {counts[member] for member in range(members)} <= {rounds - 1, rounds}
    assert rounds in counts.values()


def test_a_restart_delays_the_turn_of_a_member() -> None:
    async def main() -> list[int]:
        calls: list[int] = []
        rotation = Rotation(calls.append)
        rotation.restart(1)
        rotation.restart(2)
        await asyncio.sleep(INTERVAL * 0.8)
        rotation.restart(1)
        await asyncio.sleep(INTERVAL * 0.8)
        rotation.discard(1)
        rotation.discard(2)
        return calls

    assert run_in_virtual_time(main()) == [2]
