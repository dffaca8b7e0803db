"""What a request wants of a conversation."""

from __future__ import annotations

import pytest

from aiochatstream import Conversation, Turn
from aiochatstream.errors import ConversationChanged, NotFound, NothingToContinue, NothingToRegenerate
from aiochatstream.runtime.turn_request import Task, TurnRequest

FIRST, SECOND, BROKEN = Turn("a", "A", "1"), Turn("b", "B", "2"), Turn("c", "half", "3", "interrupted")

THREE = Conversation((FIRST, SECOND, BROKEN), number=7, turn_id="3", first=2)


def test_something_new_comes_behind_all_that_was_said() -> None:
    assert TurnRequest("d").of(THREE) == Task(THREE, "d")


def test_the_last_message_is_answered_again_without_its_answer() -> None:
    assert TurnRequest().of(THREE) == Task(THREE.without_last(), "c")
    with pytest.raises(NothingToRegenerate):
        TurnRequest().of(Conversation(number=3))


def test_an_edited_message_takes_the_place_of_its_turn_and_of_all_after_it() -> None:
    task = TurnRequest("other", edits="2").of(THREE)
    assert (task.base.turns, task.base.first, task.base.number) == ((FIRST,), 1, 7)
    assert (task.message, task.prefix) == ("other", "")
    with pytest.raises(NotFound, match=r"^edit_message_id: this conversation has no answer '9'"):
        TurnRequest("other", edits="9").of(THREE)


def test_an_interrupted_answer_goes_on_where_it_stopped() -> None:
    assert TurnRequest(continues=True).of(THREE) == Task(THREE.without_last(), "c", "half")
    for nothing in (Conversation(), THREE.without_last()):
        with pytest.raises(NothingToContinue):
            TurnRequest(continues=True).of(nothing)


@pytest.mark.parametrize(
    "ask", [TurnRequest("d"), TurnRequest(), TurnRequest("d", edits="1"), TurnRequest(continues=True)]
)
def test_another_state_than_the_client_has_seen_is_refused(ask: TurnRequest) -> None:
    seen = TurnRequest(ask.message, ask.edits, ask.continues, if_turn=7)
    assert seen.of(THREE) == ask.of(THREE)
    with pytest.raises(ConversationChanged, match=r"^if_turn: the conversation is at turn 8, not 7"):
        seen.of(THREE.begin("x"))
