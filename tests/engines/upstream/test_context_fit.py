"""Tests for the fitting of conversations by estimated lengths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiochatstream.engines.upstream.context_fit import TokenEstimate, drop_oldest_turns

SYSTEM = {"role": "system", "content": "s"}


def conversation(turns: int, *, system: bool = True) -> list[dict[str, str]]:
    messages = [SYSTEM] if system else []
    for number in range(turns):
        messages += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    return [*messages, {"role": "user", "content": "newest"}]


@given(st.integers(0, 12), st.booleans(), st.integers(1, 300), st.data())
def test_whole_turns_are_dropped_and_the_rest_fits_if_it_can(
    turns: int, system: bool, room: int, data: st.DataObject
) -> None:
    messages = conversation(turns, system=system)
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=len(messages), max_size=len(messages)))
    shorter = drop_oldest_turns(messages, lengths, room)
    dropped = len(messages) - len(shorter)
    assert dropped % 2 == 0
    assert shorter == messages[:system] + messages[system + dropped :]
    rest = sum(lengths[:system]) + sum(lengths[system + dropped :])
    assert rest <= room or dropped == 2 * turns
    assert dropped == 0 or sum(lengths) > room


def test_the_beginning_stays_while_a_conversation_grows() -> None:
    beginnings = []
    for turns in range(5, 40):
        messages = conversation(turns)
        beginnings.append(drop_oldest_turns(messages, [10] * len(messages), 200)[1]["content"])
    assert len(set(beginnings)) <= 14  # 35 turns of 20 tokens, and steps of 50


def test_an_answer_to_continue_stays() -> None:
    messages = [*conversation(3), {"role": "assistant", "content": "beginning"}]
    assert drop_oldest_turns(messages, [10] * 9, 25) == [SYSTEM, *messages[-2:]]


def test_messages_without_a_user_stay() -> None:
    messages = [SYSTEM, {"role": "assistant", "content": "a"}]
    assert drop_oldest_turns(messages, [10, 10], 5) == messages


def test_reported_lengths_correct_the_estimate() -> None:
    estimate, messages = TokenEstimate(), [{"role": "user", "content": "word " * 100}]
    assert 100 < estimate(messages) < 200
    for _ in range(60):
        estimate.learn(messages, 400)
    assert 395 < estimate(messages) <= 400
    estimate.learn(messages, 0)  # a server that reports nothing
    assert 395 < estimate(messages) <= 400


def test_short_prompts_teach_little() -> None:
    estimate, messages = TokenEstimate(), [{"role": "user", "content": "word " * 400}]
    before = estimate(messages)
    estimate.learn([{"role": "user", "content": "Hi"}], 30)  # mostly the template
    assert estimate(messages) < 1.2 * before


def test_characters_outside_ascii_count_more() -> None:
    estimate = TokenEstimate()
    assert estimate([{"role": "user", "content": "山" * 40}]) > 2 * estimate([{"role": "user", "content": "m" * 40}])
