"""Tests of stop strings in streamed text."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiochatstream.engines.stop_strings import StopStrings


def cut(text: str, stops: list[str]) -> str:
    """Return ``text`` up to the stop string that ends first; if several end there, up to the longest.

    The answer ends as soon as a stop string is complete, so no other rule is independent of the chunks.
    """
    matches = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(matches)[1]] if matches else text


def push_all(chunks: list[str], stops: list[str]) -> tuple[list[str], bool]:
    """Return the whole text after each chunk, and whether a stop string ended it."""
    stop_strings = StopStrings(tuple(stops))
    texts = [""]
    for chunk in chunks:
        text, stopped = stop_strings.push(chunk)
        texts.append(texts[-1] + text)
        if stopped:
            assert stop_strings.flush() == ""
            return texts, True
    return [*texts, texts[-1] + stop_strings.flush()], False


few_letters = st.text("ab", min_size=1, max_size=4)


@settings(max_examples=500, deadline=None)
@given(chunks=st.lists(st.text("abc", max_size=4), max_size=8), stops=st.lists(few_letters, max_size=3))
@example(chunks=["aab"], stops=["ab", "aaba"])
@example(chunks=["xab", "c"], stops=["ab", "xabc"])
@example(chunks=["xabc"], stops=["ab", "xabc"])
def test_the_text_ends_before_the_first_stop_string_for_any_chunks(chunks: list[str], stops: list[str]) -> None:
    text = "".join(chunks)
    texts, stopped = push_all(chunks, stops)
    assert texts[-1] == cut(text, stops)
    assert stopped == any(stop in text for stop in stops)
    for so_far in texts:  # no part of a stop string was returned
        assert cut(text, stops).startswith(so_far)


@pytest.mark.parametrize(
    ("chunks", "stops", "texts"),
    [
        (["Hello", " you"], [], ["Hello", "Hello you"]),
        (["Hi\n", "<hu", "man", ">: no"], ["<human>:"], ["Hi\n", "Hi\n", "Hi\n", "Hi\n"]),
        (["Hi\n", "<hu", "e>"], ["<human>:"], ["Hi\n", "Hi\n", "Hi\n<hue>"]),
        (["a", "a", "a", "b"], ["aab"], ["", "", "a", "a"]),  # pending text is returned in parts
        (["##", "#"], ["#", "###"], [""]),
        (["x", "#", "##"], ["##", "###"], ["x", "x", "x"]),
        (["ab", "c"], ["bcd", "abce"], ["", ""]),
    ],
)
def test_text_is_pending_only_while_it_may_become_a_stop_string(
    chunks: list[str], stops: list[str], texts: list[str]
) -> None:
    assert push_all(chunks, stops)[0][1 : len(texts) + 1] == texts


def test_flush_returns_the_pending_text_once() -> None:
    stop_strings = StopStrings(("###",))
    assert stop_strings.push("end ##") == ("end ", False)
    assert stop_strings.flush() == "##"
    assert stop_strings.flush() == ""
