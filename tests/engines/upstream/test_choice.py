from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from aiochatstream.engines.upstream.choice import choose


def servers(**slots: int) -> list[Any]:
    return [SimpleNamespace(name=name, url=f"http://{name}", slots=number, running=0) for name, number in slots.items()]


KEYS = [f"user {number}" for number in range(2000)]


def test_a_key_always_belongs_to_the_same_server_in_any_order() -> None:
    group = servers(a=64, b=64, c=64)
    assert [choose(key, group) for key in KEYS] == [choose(key, group[::-1]) for key in KEYS]


def test_servers_own_keys_in_proportion_to_their_slots() -> None:
    owned = Counter(choose(key, servers(a=30, b=10)).url for key in KEYS)
    assert 0.7 < owned["http://a"] / len(KEYS) < 0.8


def test_only_the_keys_of_a_server_that_vanishes_move() -> None:
    group = servers(a=8, b=16, c=16, d=32)
    before = {key: choose(key, group) for key in KEYS}
    after = {key: choose(key, group[:-1]) for key in KEYS}
    moved = {key for key in KEYS if before[key] is not after[key]}
    assert moved == {key for key in KEYS if before[key] is group[-1]}
    assert 0 < len(moved) < len(KEYS) * 0.6


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ((0, 0), "a"),
        ((12, 0), "a"),  # at most ceil(1.25 * 13 * 1/2) + 4 = 13
        ((13, 0), "b"),
        ((25, 8), "a"),  # at most ceil(1.25 * 34 * 1/2) + 4 = 26
        ((26, 8), "b"),
    ],
)
def test_a_server_with_more_than_its_share_passes_keys_on(running: tuple[int, int], expected: str) -> None:
    group = servers(a=64, b=64)
    key = next(key for key in KEYS if choose(key, group) is group[0])
    group[0].running, group[1].running = running
    assert choose(key, group).url == f"http://{expected}"


def test_a_share_is_proportional_to_the_slots() -> None:
    large, small = group = servers(a=90, b=10)
    key = next(key for key in KEYS if choose(key, group) is small)
    large.running, small.running = 31, 9  # at most ceil(1.25 * 41 * 1/10) + 4 = 10
    assert choose(key, group).url == small.url
    small.running = 10
    assert choose(key, group).url == large.url


def test_answers_of_other_fronts_count() -> None:
    group = servers(a=64, b=64)
    key = next(key for key in KEYS if choose(key, group) is group[0])
    assert choose(key, group, {"a": 20, "b": 20}.__getitem__) is group[0]
    assert choose(key, group, {"a": 20, "b": 0}.__getitem__) is group[1]
