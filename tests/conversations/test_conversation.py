"""Conversations as plain data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiochatstream import Conversation, Turn
from aiochatstream.conversations.conversation import MAX_CHARS, MAX_TURNS

TURNS = tuple(Turn(f"question {number}", f"answer {number}", f"id {number}") for number in range(4))


@settings(deadline=None, max_examples=50)
@given(
    st.builds(
        Conversation,
        turns=st.lists(
            st.builds(Turn, st.text(), st.text(), st.text(), st.sampled_from(["complete", "interrupted"]), st.text())
        ).map(tuple),
        number=st.integers(0),
        turn_id=st.text(),
        first=st.integers(0),
    )
)
def test_from_dict_restores_a_conversation_from_json(conversation: Conversation) -> None:
    assert Conversation.from_dict(json.loads(json.dumps(conversation.to_dict()))) == conversation


@pytest.mark.parametrize(
    "data",
    [{}, [], None, {"turns": None}, {"turns": ["text"]}, {"turns": [{"user": "Hi"}]}, {"turns": [], "unknown": 1}],
)
def test_from_dict_refuses_other_data(data: Any) -> None:
    with pytest.raises((KeyError, TypeError)):
        Conversation.from_dict(data)


def test_begin_counts_the_turn_and_sets_its_message_id() -> None:
    conversation = Conversation(TURNS, number=7, turn_id="id 3", first=2)
    assert conversation.begin("new") == Conversation(TURNS, number=8, turn_id="new", first=2)


def test_with_turn_appends_a_turn_and_keeps_the_number() -> None:
    conversation = Conversation(TURNS[:3], number=4, turn_id="id 3", first=1).with_turn(TURNS[3])
    assert conversation == Conversation(TURNS, number=4, turn_id="id 3", first=1)


@pytest.mark.parametrize(
    ("turns", "first", "turns_after", "first_after"),
    [(TURNS, 0, TURNS[:3], 0), (TURNS, 3, TURNS[:3], 3), (TURNS, 4, TURNS[:3], 3), ((), 0, (), 0)],
)
def test_without_last_removes_the_last_turn_and_keeps_the_number(
    turns: tuple[Turn, ...], first: int, turns_after: tuple[Turn, ...], first_after: int
) -> None:
    conversation = Conversation(turns, number=9, turn_id="x", first=first).without_last()
    assert conversation == Conversation(turns_after, number=9, turn_id="x", first=first_after)


@pytest.mark.parametrize(
    ("turns", "first", "turns_after", "first_after"),
    [(TURNS, 0, TURNS[1:], 0), (TURNS, 2, TURNS[1:], 1), (TURNS, 4, TURNS[1:], 3), ((), 0, (), 0)],
)
def test_drop_oldest_keeps_first_at_the_same_turn(
    turns: tuple[Turn, ...], first: int, turns_after: tuple[Turn, ...], first_after: int
) -> None:
    conversation = Conversation(turns, number=9, turn_id="x", first=first).drop_oldest()
    assert conversation == Conversation(turns_after, number=9, turn_id="x", first=first_after)


def test_drop_oldest_drops_count_turns() -> None:
    assert Conversation(TURNS, number=9, first=3).drop_oldest(2) == Conversation(TURNS[2:], number=9, first=1)
    assert Conversation(TURNS, number=9, first=1).drop_oldest(4) == Conversation(number=9)


def test_a_conversation_with_too_many_characters_loses_its_oldest_turns() -> None:
    quarters = tuple(Turn("x" * (MAX_CHARS // 8), "y" * (MAX_CHARS // 8), str(number)) for number in range(4))
    full = Conversation(quarters[:3], first=2).with_turn(quarters[3])
    assert full == Conversation(quarters, first=2)
    assert full.with_turn(Turn("", "", "empty")).turns[:-1] == quarters
    assert full.with_turn(Turn("x", "", "4")) == Conversation((*quarters[1:], Turn("x", "", "4")), first=1)
    longer = Turn("x" * MAX_CHARS, "y", "5")
    assert full.with_turn(longer) == Conversation((longer,))


def test_a_conversation_with_too_many_turns_loses_the_oldest() -> None:
    short = tuple(Turn("x", "", str(number)) for number in range(MAX_TURNS + 1))
    full = Conversation(short[:-1], first=5)
    assert full.with_turn(short[-1]) == Conversation(short[1:], first=4)


def test_starting_at_sets_first_and_keeps_all_turns() -> None:
    assert Conversation(TURNS, number=9, turn_id="x").starting_at(2) == Conversation(
        TURNS, number=9, turn_id="x", first=2
    )


def test_changes_do_not_modify_the_conversation_in_place() -> None:
    conversation = Conversation(TURNS[:2], number=2, turn_id="id 1", first=1)
    conversation.begin("x").with_turn(TURNS[2]).without_last().drop_oldest().starting_at(0)
    assert conversation == Conversation(TURNS[:2], number=2, turn_id="id 1", first=1)


def test_thoughts_count_for_the_maximum_size() -> None:
    conversation = Conversation((Turn("a", "b", "1", thinking="c" * MAX_CHARS),)).with_turn(Turn("a", "b", "2"))
    assert [turn.message_id for turn in conversation.turns] == ["2"]


def test_data_without_thoughts_have_no_such_key() -> None:
    with_thought = Conversation((Turn("a", "b", "1"), Turn("c", "d", "2", thinking="e")))
    old, new = with_thought.to_dict()["turns"]
    assert old == {"user": "a", "answer": "b", "message_id": "1", "state": "complete"}  # as before there were thoughts
    assert new == {"user": "c", "answer": "d", "message_id": "2", "state": "complete", "thinking": "e"}
    assert with_thought.without_thoughts() == Conversation((Turn("a", "b", "1"), Turn("c", "d", "2")))
