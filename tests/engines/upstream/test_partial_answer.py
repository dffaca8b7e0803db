"""Tests for the answer so far."""

from __future__ import annotations

import pytest

from aiochatstream.engines.base import Delta
from aiochatstream.engines.upstream.partial_answer import PartialAnswer
from aiochatstream.engines.upstream.stream_chunks import StreamChunk, StreamUsage


def answer(*stop: str, holds_space: bool = True) -> PartialAnswer:
    return PartialAnswer(stop, holds_space=holds_space)


def push(partial: PartialAnswer, *chunks: StreamChunk) -> list[Delta]:
    return [delta for chunk in chunks for delta in partial.push(chunk)]


def totals(deltas: list[Delta]) -> tuple[str, int]:
    return "".join(delta.text for delta in deltas), sum(delta.token_count for delta in deltas)


def test_text_without_ids_counts_a_token_for_each_chunk_and_the_usage_corrects_it() -> None:
    partial = answer()
    deltas = push(partial, StreamChunk("The sea"), StreamChunk(" is"), StreamChunk(finish_reason="stop"))
    assert totals(deltas) == ("The sea is", 2)
    push(partial, StreamChunk(usage=StreamUsage(9, 4, 3)))
    assert partial.finish() == Delta(finish_reason="stop", tokens=2, prompt_tokens=9, cached_tokens=3)


def test_ids_count_the_tokens() -> None:
    partial = answer()
    first, second = push(
        partial,
        StreamChunk("The", token_ids=(1, 2), prompt_tokens=7),
        StreamChunk(" sea", token_ids=(3,)),
        StreamChunk(token_ids=(4,), finish_reason="stop"),
    )
    end = partial.finish()
    assert (first.token_ids, second.token_ids, partial.token_ids, partial.knows_ids) == ((1, 2), (3,), [1, 2, 3], True)
    assert (end.tokens, end.prompt_tokens) == (1, 7)


def test_whitespace_at_the_end_waits_for_more_text() -> None:
    partial = answer()
    deltas = push(partial, StreamChunk("a \n"), StreamChunk("\n"), StreamChunk("b"))
    assert [delta.text for delta in deltas] == ["a", " \n\nb"]
    assert totals(deltas)[1] == 3
    assert totals([*push(partial, StreamChunk(" ", finish_reason="stop")), partial.finish()]) == (" ", 1)


def test_a_new_attempt_generates_held_back_whitespace_again() -> None:
    partial = answer()
    deltas = push(partial, StreamChunk("a"), StreamChunk("\n"))
    partial.begin_attempt()
    deltas += push(partial, StreamChunk("\n"), StreamChunk("b", finish_reason="stop"))
    assert totals([*deltas, partial.finish()]) == ("a\nb", 3)


def test_tokens_without_text_are_generated_again_and_counted_once() -> None:
    partial = answer(holds_space=False)
    deltas = push(partial, StreamChunk("a", token_ids=(1,)), StreamChunk(token_ids=(2,)))
    for _ in range(2):  # the second attempt ends before any token
        partial.begin_attempt()
        assert partial.token_ids == [1]
        assert partial.tokens_with_text == 1
    deltas += push(partial, StreamChunk(token_ids=(2,)), StreamChunk("é", token_ids=(3,), finish_reason="length"))
    push(partial, StreamChunk(usage=StreamUsage(6, 2, 6)))
    deltas.append(partial.finish())
    assert totals(deltas) == ("aé", 3)
    assert [id_ for delta in deltas for id_ in delta.token_ids] == partial.token_ids == [1, 2, 3]
    assert (deltas[-1].prompt_tokens, deltas[-1].cached_tokens) == (5, 5)


def test_a_stop_string_spans_two_attempts() -> None:
    partial = answer("\nUser:")
    deltas = push(partial, StreamChunk("Yes.\nUs"))
    partial.begin_attempt()
    assert partial.text == "Yes.\nUs"
    deltas += push(partial, StreamChunk("er"), StreamChunk(": and more"))
    assert partial.stopped
    deltas.append(partial.finish())
    assert totals(deltas)[0] == "Yes."
    assert deltas[-1].finish_reason == "stop"


def test_text_that_only_begins_like_a_stop_string_is_shown_at_the_end() -> None:
    partial = answer("END", holds_space=False)
    deltas = push(partial, StreamChunk("the EN", finish_reason="stop"))
    assert totals([*deltas, partial.finish()])[0] == "the EN"


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([StreamChunk(thinking="hm", finish_reason="length")], "thinking_length"),
        ([StreamChunk(thinking="hm"), StreamChunk("a", finish_reason="length")], "length"),
        ([StreamChunk("a", finish_reason="tool_calls")], "stop"),
        ([StreamChunk("a", finish_reason="content_filter")], "stop"),
    ],
)
def test_finish_reasons(chunks: list[StreamChunk], reason: str) -> None:
    partial = answer()
    push(partial, *chunks)
    assert partial.finish().finish_reason == reason


def test_thoughts_and_text_of_one_chunk_are_two_deltas() -> None:
    partial = answer()
    thought, text = partial.push(StreamChunk("a", "hm", token_ids=(1, 2)))
    assert (thought.thinking, thought.text, thought.thinking_tokens) == ("hm", "", 2)
    assert (text.thinking, text.text, text.thinking_tokens) == ("", "a", 0)
    assert totals([thought, text])[1] == 2
    assert not partial.in_thought
