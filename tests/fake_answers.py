"""The answers of :mod:`tests.fake_upstream`: text that depends on nothing but the prompt and the position.

A client computes the same text with :func:`answer_words` or :func:`answer_text`, and so checks an answer word for word,
no matter which servers generated its parts. A token is a word. Token ids of prompts depend on the words; the ids of an
answer's words are ``FIRST_ANSWER_ID + position``, so that "prompt ids + ids of the answer so far" shows where to go on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

FIRST_ANSWER_ID = 1_000_000
"""Token id of the first word of every answer. Ids of prompts are smaller."""

MARK = "▸"
"""First character of every answer, which shows where an answer begins in a prompt of text."""

VOCABULARY = (
    "sea",
    "山",
    "café",
    "🎉",
    "river",
    "こんにちは",
    "naïve",
    "👩‍🚀",
    "stone",
    "Ω",
    "and",
    "東京",
    "moss",
    "ß",
    "😀",
    "tree",
)

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""Text, token ids, or messages."""


class Start(NamedTuple):
    """A prompt without the beginning of its answer, and this beginning.

    ``text`` is "" if only token ids are known; ``words`` counts the words before the next one.
    """

    ids: tuple[int, ...]
    words: int = 0
    text: str = ""


def word_ids(text: str) -> list[int]:
    return [crc32(word.encode()) % FIRST_ANSWER_ID for word in text.split(" ")]


def prompt_ids(prompt: Prompt) -> tuple[int, ...]:
    """Return the token ids of a prompt."""
    if isinstance(prompt, str):
        return tuple(word_ids(prompt))
    ids: list[int] = []
    for part in prompt:
        ids += [part] if isinstance(part, int) else message_ids(part)
    return tuple(ids)


def message_ids(message: Mapping[str, Any]) -> list[int]:
    content = message.get("content")
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        content = "".join(part["text"] for part in content)
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    return word_ids(f"<{message['role']}> {text}")


def answer_words(prompt: Prompt, words: int, choice: int = 0) -> list[str]:
    """Return the words of the answer to a prompt, the first without and the others with a space before them."""
    seed = crc32(json.dumps([*prompt_ids(prompt), choice]).encode())
    texts = [f" {VOCABULARY[crc32(b'%d %d' % (seed, k)) % len(VOCABULARY)]}{k}" for k in range(words)]
    return [MARK + texts[0][1:], *texts[1:]] if texts else []


def answer_text(prompt: Prompt, words: int, choice: int = 0) -> str:
    """Return the text of the answer to a prompt."""
    return "".join(answer_words(prompt, words, choice))


def split_messages(messages: Sequence[Mapping[str, Any]], continues: bool) -> Start:
    """Return messages as a start. If ``continues``, the last message is the beginning of the answer."""
    if not continues:
        return Start(prompt_ids(messages))
    text = str(messages[-1].get("content") or "")
    return Start(prompt_ids(messages[:-1]), len(text.split(" ")) if text else 0, text)


def split_ids(ids: Sequence[int]) -> Start:
    """Return token ids as a start: those of an answer at the end are its beginning."""
    end = len(ids)
    while end and ids[end - 1] >= FIRST_ANSWER_ID:
        end -= 1
    return Start(tuple(ids[:end]), len(ids) - end)


def split_text(prompt: str) -> Start:
    """Return a text as a start: a beginning of its own answer at the end is the beginning of the answer."""
    before, mark, rest = prompt.rpartition(MARK)
    words = rest.count(" ") + 1
    if mark and answer_text(before, words).startswith(mark + rest):
        return Start(prompt_ids(before), words, mark + rest)
    return Start(prompt_ids(prompt))


def rest_of_answer(words: Sequence[str], start: Start) -> list[tuple[str, int]] | None:
    """Return the texts and the token ids after the beginning; the first may be a part of a word.

    Return None if the beginning is not one of this answer.
    """
    pieces = [(word, FIRST_ANSWER_ID + k) for k, word in enumerate(words)]
    if not start.text:
        return pieces[start.words :]
    if not "".join(words).startswith(start.text):
        return None
    length = len(start.text)
    while pieces and length >= len(pieces[0][0]):
        length -= len(pieces.pop(0)[0])
    return [(pieces[0][0][length:], pieces[0][1]), *pieces[1:]] if pieces else []
