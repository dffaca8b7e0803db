"""Stop strings in a stream of text."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiochatstream.engines.stop_strings import StopStrings


def cut(text: str, stops: list[str]) -> str:
    """``text`` up to the stop string that is complete first; of those that end together, up to the longest.

    The answer ends as soon as one is complete, so this is the one rule that does not depend on how the text came.
    """
    met = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(met)[1]] if met else text


def shown(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    """All text that shows after each piece, and whether a stop string ended it."""
    stop_strings = StopStrings(tuple(stops))
    texts = [""]
    for piece in pieces:
        text, stopped = stop_strings.push(piece)
        texts.append(texts[-1] + text)
        if stopped:
            assert stop_strings.flush() == ""
            return texts, True
    return [*texts, texts[-1] + stop_strings.flush()], False


few_letters = st.text("ab", min_size=1, max_size=4)


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(st.text("abc", max_size=4), max_size=8), stops=st.lists(few_letters, max_size=3))
@example(pieces=["aab"], stops=["ab", "aaba"])
@example(pieces=["xab", "c"], stops=["ab", "xabc"])
@example(pieces=["xabc"], stops=["ab", "xabc"])
def test_however_the_text_comes_what_shows_is_the_text_before_the_first_stop_string(
    pieces: list[str], stops: list[str]
) -> None:
    text = "".join(pieces)
    texts, stopped = shown(pieces, stops)
    assert texts[-1] == cut(text, stops)
    assert stopped == any(stop in text for stop in stops)
    for so_far in texts:  # nothing that showed was the beginning of a stop string
        assert cut(text, stops).startswith(so_far)


@pytest.mark.parametrize(
    ("pieces", "stops", "texts"),
    [
        (["Hello", " you"], [], ["Hello", "Hello you"]),
        (["Hi\n", "<hu", "man", ">: no"], ["<human>:"], ["Hi\n", "Hi\n", "Hi\n", "Hi\n"]),
        (["Hi\n", "<hu", "e>"], ["<human>:"], ["Hi\n", "Hi\n", "Hi\n<hue>"]),
        (["a", "a", "a", "b"], ["aab"], ["", "", "a", "a"]),  # the held back text is let through piece by piece
        (["##", "#"], ["#", "###"], [""]),
        (["x", "#", "##"], ["##", "###"], ["x", "x", "x"]),
        (["ab", "c"], ["bcd", "abce"], ["", ""]),
    ],
)
def test_text_is_held_back_as_long_as_it_may_become_a_stop_string_and_no_longer(
    pieces: list[str], stops: list[str], texts: list[str]
) -> None:
    assert shown(pieces, stops)[0][1 : len(texts) + 1] == texts


def test_what_was_held_back_shows_when_nothing_follows() -> None:
    stop_strings = StopStrings(("###",))
    assert stop_strings.push("end ##") == ("end ", False)
    assert stop_strings.flush() == "##"
    assert stop_strings.flush() == ""
