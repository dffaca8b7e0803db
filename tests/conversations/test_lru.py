"""The least-recently-used cache."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream.conversations.lru import BoundedMap


def bounded(
    now: list[float] | None = None,
    *,
    max_entries: float = 100,
    idle_seconds: float = 60.0,
    max_bytes: float = 1000,
) -> BoundedMap:
    """Return a cache whose clock shows ``now[0]``, by default 0."""
    clock = [0.0] if now is None else now
    return BoundedMap(
        max_entries=max_entries,  # type: ignore[arg-type]  # one test passes nan
        idle_seconds=idle_seconds,
        max_bytes=max_bytes,  # type: ignore[arg-type]
        clock=lambda: clock[0],
    )


def present(entries: BoundedMap, keys: str) -> str:
    """Get each of ``keys``, and return those that are present."""
    return "".join(key for key in keys if entries.get(key) is not None)


@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_limits_must_be_above_0(value: float) -> None:
    with pytest.raises(ValueError, match=f"^max_entries: must be above 0, not {value}\\.$"):
        bounded(max_entries=value)
    with pytest.raises(ValueError, match=f"^idle_seconds: must be above 0, not {value}\\.$"):
        bounded(idle_seconds=value)
    with pytest.raises(ValueError, match=f"^max_bytes: must be above 0, not {value}\\.$"):
        bounded(max_bytes=value)


def test_get_returns_the_text_of_a_key_or_none() -> None:
    entries = bounded()
    entries.put("a", "first")
    entries.put("a", "日本 🍣")
    entries.put("b", "")
    assert (entries.get("a"), entries.get("b"), entries.get("c"), len(entries)) == ("日本 🍣", "", None, 2)


@pytest.mark.parametrize("use", ["get", "put"])
def test_above_max_entries_the_least_recently_used_is_dropped(use: str) -> None:
    entries = bounded(max_entries=3)
    for key in "abc":
        entries.put(key, "x")
    entries.get("a") if use == "get" else entries.put("a", "y")
    entries.put("d", "x")
    assert present(entries, "abcd") == "acd"
    entries.put("e", "x")
    assert present(entries, "abcde") == "cde"


def test_above_max_bytes_the_least_recently_used_are_dropped() -> None:
    entries = bounded(max_bytes=10)
    for key in "abc":
        entries.put(key, "日")  # three bytes
    assert (present(entries, "abc"), entries.bytes) == ("abc", 9)
    entries.put("d", "1234567")
    assert (present(entries, "abcd"), entries.bytes) == ("cd", 10)
    entries.put("c", "1")
    assert (present(entries, "cd"), entries.bytes) == ("cd", 8)
    assert entries.pop("d")
    assert entries.bytes == 1


def test_a_text_above_max_bytes_is_refused_and_evicts_nothing() -> None:
    entries = bounded(max_bytes=10)
    entries.put("a", "1")
    entries.put("b", "2")
    with pytest.raises(ValueError, match="12 bytes exceed the capacity of 10 bytes"):
        entries.put("a", "日本東京")
    assert (entries.get("a"), entries.get("b"), entries.bytes) == ("1", "2", 2)


def test_an_entry_expires_idle_seconds_after_its_last_use() -> None:
    now = [1000.0]
    entries = bounded(now)
    for key in "abc":
        entries.put(key, "x")
    now[0] += 40
    entries.get("a")
    entries.put("b", "y")
    now[0] += 20
    assert present(entries, "c") == "c"
    now[0] += 41
    assert present(entries, "abc") == "c"
    now[0] += 60.1
    entries.put("d", "x")
    assert (len(entries), entries.bytes) == (1, 1)


def test_a_pinned_entry_is_never_dropped() -> None:
    now = [0.0]
    entries = bounded(now, max_entries=2)
    entries.put("a", "x")
    with entries.pinned("a"), entries.pinned("a"):
        for key in "bcd":
            entries.put(key, "x")
        assert present(entries, "bcd") == "d"
        now[0] += 100
        entries.put("e", "x")
        assert len(entries) == 2
    assert present(entries, "ae") == "e", "a is idle and no longer pinned"


def test_entries_above_the_limits_are_dropped_when_unpinned() -> None:
    entries = bounded(max_entries=1)
    with entries.pinned("a"):
        entries.put("a", "x")
        with entries.pinned("b"):
            entries.put("b", "x")
            assert len(entries) == 2
        assert present(entries, "ab") == "a"


def test_sweep_drops_idle_entries_in_batches() -> None:
    now = [0.0]
    entries = bounded(now, max_entries=1000, max_bytes=10_000)
    for number in range(250):
        entries.put(str(number), "x")
    now[0] += 61
    assert [entries.sweep() for _ in range(3)] == [True, True, False]
    assert (len(entries), entries.bytes) == (0, 0)


def test_a_large_share_evicts_only_its_own_entries() -> None:
    entries = bounded(max_entries=20)
    for key in "abc":
        entries.put(key, "x", share=f"of {key}")
    for number in range(100):
        entries.put(str(number), "x", share="many")
    assert present(entries, "abc") == "abc"
    assert len(entries) == 20
    assert entries.get("99") is not None


def test_shares_are_compared_by_bytes_as_well() -> None:
    entries = bounded(max_bytes=100)
    for key in "abc":
        entries.put(key, "x", share=f"of {key}")
    for number in range(100):
        entries.put(str(number), "x" * 20, share="many")
    assert present(entries, "abc") == "abc"
    assert entries.bytes == 83


def test_entries_of_the_common_share_are_dropped_before_a_larger_share() -> None:
    entries = bounded(max_entries=20)
    for number in range(15):
        entries.put(f"charged {number}", "x", share="proxy")
    for number in range(100):
        entries.put(str(number), "x")
    assert all(entries.get(f"charged {number}") for number in range(15))


def test_an_entry_stays_in_its_share_unless_put_names_another() -> None:
    entries = bounded(max_entries=10)
    entries.put("a", "x", share="one")
    entries.put("a", "y")
    for number in range(20):
        entries.put(str(number), "x")
    assert entries.get("a") == "y"


def test_a_large_entry_stays_while_its_share_is_fair() -> None:
    entries = bounded(max_bytes=100)
    for number in range(99):
        entries.put(str(number), "x", share=f"of {number}")
    entries.put("long", "x" * 9, share="of long")
    assert entries.get("long") is not None


def test_another_share_loses_an_entry_if_the_largest_is_pinned() -> None:
    entries = bounded(max_entries=10)
    entries.put("a", "x", share="small")
    with ExitStack() as pins:
        for number in range(20):
            pins.enter_context(entries.pinned(str(number)))
            entries.put(str(number), "x", share="many")
        assert entries.get("a") is None
        assert len(entries) == 20
    assert len(entries) == 10


def test_pop_returns_whether_the_key_was_present() -> None:
    now = [0.0]
    entries = bounded(now)
    entries.put("a", "x")
    entries.put("b", "x")
    assert entries.pop("a")
    assert not entries.pop("a")
    now[0] = 61.0
    assert not entries.pop("b"), "b has expired"


Step = tuple[Literal["wait"], int] | tuple[Literal["get", "pop", "put"], str, str]
"""Seconds to wait; or an operation, its key, and the text of a put."""


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.sampled_from("abcdef"), st.text("x日", max_size=5)),
            st.tuples(st.sampled_from(["get", "pop"]), st.sampled_from("abcdef"), st.just("")),
            st.tuples(st.just("wait"), st.integers(0, 40)),
        )
    )
)
def test_bounded_map_matches_a_model(steps: list[Step]) -> None:
    now = [0.0]
    entries = bounded(now, max_entries=3, max_bytes=20)
    model: list[tuple[str, str, float]] = []  # key, text and time of the last use; the least recently used first
    for step in steps:
        if step[0] == "wait":
            now[0] += step[1]
            continue
        name, key, text = step
        model = [entry for entry in model if now[0] - entry[2] <= 60]
        stored = next((entry[1] for entry in model if entry[0] == key), None)
        model = [entry for entry in model if entry[0] != key]
        if name == "get":
            assert entries.get(key) == stored
            if stored is not None:
                model.append((key, stored, now[0]))
        elif name == "put":
            entries.put(key, text)
            model.append((key, text, now[0]))
        else:
            assert entries.pop(key) == (stored is not None)
        while len(model) > 3 or sum(len(text.encode()) for _, text, _ in model) > 20:
            del model[0]
        entries.get("unknown")  # drops idle entries
        assert len(entries) == len(model)
        assert entries.bytes == sum(len(text.encode()) for _, text, _ in model)
