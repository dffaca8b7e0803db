"""Requests for a turn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aiochatstream import Conversation, Turn
from aiochatstream.errors import ConversationChanged, NotFound, NothingToContinue, NothingToRegenerate
from aiochatstream.runtime.turn_request import TurnInput, TurnRequest

FIRST, SECOND, BROKEN = Turn("a", "A", "1"), Turn("b", "B", "2"), Turn("c", "half", "3", "interrupted")

THREE = Conversation((FIRST, SECOND, BROKEN), number=7, turn_id="3", first=2)


def test_a_new_message_is_appended() -> None:
    assert TurnRequest("d").resolve(THREE) == TurnInput(THREE, "d")


def test_a_regeneration_replaces_the_last_answer() -> None:
    assert TurnRequest().resolve(THREE) == TurnInput(THREE.without_last(), "c")
    with pytest.raises(NothingToRegenerate):
        TurnRequest().resolve(Conversation(number=3))


def test_an_edited_message_replaces_its_turn_and_all_later_ones() -> None:
    turn_input = TurnRequest("other", edits="2").resolve(THREE)
    assert (turn_input.base.turns, turn_input.base.first, turn_input.base.number) == ((FIRST,), 1, 7)
    assert (turn_input.message, turn_input.prefix) == ("other", "")
    with pytest.raises(NotFound, match=r"^edit_message_id: this conversation has no answer '9'"):
        TurnRequest("other", edits="9").resolve(THREE)


def test_a_continuation_extends_the_interrupted_answer() -> None:
    assert TurnRequest(continues=True).resolve(THREE) == TurnInput(THREE.without_last(), "c", "half")
    for conversation in (Conversation(), THREE.without_last()):
        with pytest.raises(NothingToContinue):
            TurnRequest(continues=True).resolve(conversation)


@pytest.mark.parametrize(
    "turn_request", [TurnRequest("d"), TurnRequest(), TurnRequest("d", edits="1"), TurnRequest(continues=True)]
)
def test_a_turn_number_other_than_the_current_one_is_refused(turn_request: TurnRequest) -> None:
    seen = replace(turn_request, if_turn=7)
    assert seen.resolve(THREE) == turn_request.resolve(THREE)
    with pytest.raises(ConversationChanged, match=r"^if_turn: the conversation is at turn 8, not 7"):
        seen.resolve(THREE.begin("x"))
