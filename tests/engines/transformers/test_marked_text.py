"""Text in which control tokens differ from ordinary text."""

from __future__ import annotations

import regex

from aiochatstream.engines.transformers.marked_text import MarkedText

MARK = regex.compile("<a>b")


def marked(*pieces: tuple[str, bool]) -> MarkedText:
    source = MarkedText(regex.compile("<a>"))
    for text, control in pieces:
        source.append(text, control=control)
    return source


def test_only_control_tokens_match() -> None:
    source = marked(("<a>b", False), ("<a>", True), ("b", False))
    assert source.search(MARK, 0).span() == (4, 8)
    assert source.match(MARK, 0) is None
    assert source.match(MARK, 4) is not None
    assert not source.has("<a>", 0)
    assert source.has("<a>", 4)
    assert source.find("<a>", 0) == (7, 4)


def test_the_beginning_of_a_match_must_be_genuine() -> None:
    assert marked(("x<a>", False)).search(MARK, 0, partial=True).start() == 4
    assert marked(("x", False), ("<a>", True)).search(MARK, 0, partial=True).start() == 1


def test_an_incomplete_literal_at_the_end_is_found() -> None:
    assert marked(("x <", False)).find("<|", 0) == (None, 2)
    assert marked(("x ", False)).find("<|", 0) == (None, 2)


def test_trimmed_text_keeps_its_tokens() -> None:
    source = marked(("x", False), ("<a>", True), ("b", False))
    source.trim(1)
    assert source.text == "<a>b"
    assert source.search(MARK, 0).start() == 0
    source.trim(3)
    source.append("<a>b", control=False)
    assert source.search(MARK, 0) is None
