"""Replacements in a stream of text."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiochatstream.engines.replacements import Replacements


def replaced(text: str, pairs: list[tuple[str, str]]) -> str:
    """The whole text at once: at each place the first pair that fits."""
    new = dict(reversed(pairs))
    return re.sub("|".join(re.escape(old) for old, _ in pairs), lambda met: new[met[0]], text) if pairs else text


def shown(pieces: list[str], pairs: list[tuple[str, str]]) -> list[str]:
    """What comes out for each piece, and at the end."""
    replacements = Replacements(pairs)
    texts = [replacements.push(piece) for piece in pieces]
    return [*texts, replacements.flush()]


pair = st.tuples(st.text("abc", min_size=1, max_size=4), st.text("abc", max_size=3))


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(st.text("abc", max_size=4), max_size=8), pairs=st.lists(pair, max_size=4))
@example(pieces=["a", "b"], pairs=[("abc", "x"), ("a", "y")])
@example(pieces=["aa", "b"], pairs=[("ab", "x")])
@example(pieces=["a", "bc"], pairs=[("ab", "x"), ("abc", "y")])
def test_however_the_text_comes_it_is_replaced_as_in_one_piece(pieces: list[str], pairs: list[tuple[str, str]]) -> None:
    text = "".join(pieces)
    assert "".join(shown(pieces, pairs)) == replaced(text, pairs)
    assert "".join(shown(list(text), pairs)) == replaced(text, pairs)


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.text("abc", max_size=4), max_size=8), pairs=st.lists(pair, max_size=4))
def test_no_more_is_held_back_than_may_become_a_replaced_string(
    pieces: list[str], pairs: list[tuple[str, str]]
) -> None:
    replacements = Replacements(pairs)
    pushed = "".join(replacements.push(piece) for piece in pieces)
    held = replacements.flush()
    assert pushed + held == replaced("".join(pieces), pairs)
    if not any("".join(pieces).endswith(old[:length]) for old, _ in pairs for length in range(1, len(old))):
        assert held == ""


@pytest.mark.parametrize(
    ("pieces", "pairs", "texts"),
    [
        (["Hello", " you"], [], ["Hello", " you", ""]),
        (["one<", "NL", ">two"], [("<NL>", "\n")], ["one", "", "\ntwo", ""]),
        (["one<", "N", "o>"], [("<NL>", "\n")], ["one", "", "<No>", ""]),
        (["one<N"], [("<NL>", "\n")], ["one", "<N"]),
        (["<NL><NL>", "<NL>"], [("<NL>", "\n")], ["\n\n", "\n", ""]),
        (["<<NL>"], [("<NL>", "\n")], ["<\n", ""]),
        (["a", "b"], [("a", "b"), ("b", "a")], ["b", "a", ""]),  # what was put in is not replaced again
        (["a", "a"], [("a", ""), ("aa", "x")], ["", "", ""]),  # the first of the list, though the other is longer
        (["a", "a"], [("aa", "x"), ("a", "y")], ["", "x", ""]),
        (["a"], [("aa", "x"), ("a", "y")], ["", "y"]),
    ],
)
def test_text_is_held_back_as_long_as_it_may_be_replaced_and_no_longer(
    pieces: list[str], pairs: list[tuple[str, str]], texts: list[str]
) -> None:
    assert shown(pieces, pairs) == texts


def test_the_rest_comes_once() -> None:
    replacements = Replacements([("<NL>", "\n")])
    assert replacements.push("end <N") == "end "
    assert replacements.flush() == "<N"
    assert replacements.flush() == ""


def test_an_empty_string_to_replace_is_refused() -> None:
    with pytest.raises(ValueError, match="empty string"):
        Replacements([("a", "b"), ("", "x")])
