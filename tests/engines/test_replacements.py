"""Tests of replacements in streamed text."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiochatstream.engines.base import Delta, ToolCall
from aiochatstream.engines.replacements import Replacements, apply_replacements


def replace_all(text: str, pairs: list[tuple[str, str]]) -> str:
    """Replace in the whole text: at each position the first matching pair."""
    new = dict(reversed(pairs))
    return re.sub("|".join(re.escape(old) for old, _ in pairs), lambda match: new[match[0]], text) if pairs else text


def push_all(chunks: list[str], pairs: list[tuple[str, str]]) -> list[str]:
    """Return the text of each chunk, and that at the end."""
    replacements = Replacements(pairs)
    texts = [replacements.push(chunk) for chunk in chunks]
    return [*texts, replacements.flush()]


pair = st.tuples(st.text("abc", min_size=1, max_size=4), st.text("abc", max_size=3))


@settings(max_examples=500, deadline=None)
@given(chunks=st.lists(st.text("abc", max_size=4), max_size=8), pairs=st.lists(pair, max_size=4))
@example(chunks=["a", "b"], pairs=[("abc", "x"), ("a", "y")])
@example(chunks=["aa", "b"], pairs=[("ab", "x")])
@example(chunks=["a", "bc"], pairs=[("ab", "x"), ("abc", "y")])
def test_replacements_are_the_same_for_any_chunks(chunks: list[str], pairs: list[tuple[str, str]]) -> None:
    text = "".join(chunks)
    assert "".join(push_all(chunks, pairs)) == replace_all(text, pairs)
    assert "".join(push_all(list(text), pairs)) == replace_all(text, pairs)


@settings(max_examples=300, deadline=None)
@given(chunks=st.lists(st.text("abc", max_size=4), max_size=8), pairs=st.lists(pair, max_size=4))
def test_no_text_is_pending_that_cannot_become_a_replaced_string(
    chunks: list[str], pairs: list[tuple[str, str]]
) -> None:
    replacements = Replacements(pairs)
    pushed = "".join(replacements.push(chunk) for chunk in chunks)
    pending = replacements.flush()
    assert pushed + pending == replace_all("".join(chunks), pairs)
    if not any("".join(chunks).endswith(old[:length]) for old, _ in pairs for length in range(1, len(old))):
        assert pending == ""


@pytest.mark.parametrize(
    ("chunks", "pairs", "texts"),
    [
        (["Hello", " you"], [], ["Hello", " you", ""]),
        (["one<", "NL", ">two"], [("<NL>", "\n")], ["one", "", "\ntwo", ""]),
        (["one<", "N", "o>"], [("<NL>", "\n")], ["one", "", "<No>", ""]),
        (["one<N"], [("<NL>", "\n")], ["one", "<N"]),
        (["<NL><NL>", "<NL>"], [("<NL>", "\n")], ["\n\n", "\n", ""]),
        (["<<NL>"], [("<NL>", "\n")], ["<\n", ""]),
        (["a", "b"], [("a", "b"), ("b", "a")], ["b", "a", ""]),  # a replacement is not replaced again
        (["a", "a"], [("a", ""), ("aa", "x")], ["", "", ""]),  # the first pair applies, although the second is longer
        (["a", "a"], [("aa", "x"), ("a", "y")], ["", "x", ""]),
        (["a"], [("aa", "x"), ("a", "y")], ["", "y"]),
    ],
)
def test_text_is_pending_only_while_it_may_be_replaced(
    chunks: list[str], pairs: list[tuple[str, str]], texts: list[str]
) -> None:
    assert push_all(chunks, pairs) == texts


def test_flush_returns_the_pending_text_once() -> None:
    replacements = Replacements([("<NL>", "\n")])
    assert replacements.push("end <N") == "end "
    assert replacements.flush() == "<N"
    assert replacements.flush() == ""


def test_an_empty_string_cannot_be_replaced() -> None:
    with pytest.raises(ValueError, match="empty string"):
        Replacements([("a", "b"), ("", "x")])


def test_thoughts_and_tool_calls_are_not_replaced_and_text_around_them_is_not_joined() -> None:
    call = ToolCall("f", "{}", "<NL>")
    deltas = [
        Delta("a<N", (1,)),
        Delta(thinking="<NL>", token_ids=(2,)),
        Delta("L><N", (3,)),
        Delta(tool_calls=(call,), token_ids=(4,), finish_reason="stop"),
    ]
    replaced: list[Delta] = []
    push = apply_replacements([("<NL>", "\n")], replaced.append)
    for delta in deltas:
        push(delta)
    assert replaced == [
        Delta("a", (1,)),
        Delta("<N"),
        Delta(thinking="<NL>", token_ids=(2,)),
        Delta("L>", (3,)),
        Delta("<N"),
        Delta(tool_calls=(call,), token_ids=(4,), finish_reason="stop"),
    ]
