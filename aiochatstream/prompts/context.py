"""Fitting a prompt to the context: the oldest turns are dropped."""

from __future__ import annotations

from bisect import bisect_left

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.errors import TooLarge
from aiochatstream.prompts.base import AbstractChatPrompt

CHARS_PER_TOKEN = 16
"""Upper bound of the average characters in a token. Longer messages are refused before they are tokenised, and only the
end of a longer history is tokenised: encoding a megabyte holds the GIL for a second."""

FILL_AFTER_DROP = 0.75
"""Share of the available tokens that remains in use when turns are dropped: the prefix then stays for many turns."""


def fit(
    prompt: AbstractChatPrompt, *, context_len: int, answer_tokens: int, min_answer_tokens: int | None = None
) -> list[int]:
    """Return the token ids of ``prompt``, dropping old turns if they exceed the context. Blocking.

    Whole turns are dropped, oldest first, by advancing ``prompt.conversation.first``. The text that the prompt class
    writes around the turns (the system message, the template's start) remains.

    :param context_len: maximum length of prompt and answer together, in tokens.
    :param answer_tokens: tokens to reserve for the answer.
    :param min_answer_tokens: tokens to reserve if all old turns are dropped; None for ``answer_tokens``.

    Raise :class:`~aiochatstream.errors.TooLarge` if the newest message, with its open answer, does not fit.
    """
    max_chars = CHARS_PER_TOKEN * context_len
    newest = "user_input, with the answer so far" if prompt.open_answer else "user_input"
    length = len(prompt.message) + len(prompt.open_answer)
    if length > max_chars:
        raise TooLarge(f"{newest}: must have at most {max_chars} characters, not {length}.")
    prompt.conversation = _drop_beyond(prompt.conversation, max_chars, thoughts=prompt.contains_thoughts)
    room = context_len - answer_tokens
    ids = prompt.encode()
    if len(ids) <= room:
        return ids

    def length_from(first: int) -> int:
        prompt.conversation = prompt.conversation.starting_at(first)
        return len(prompt.encode())

    turns = len(prompt.conversation.turns)
    candidates = range(prompt.conversation.first, turns)
    target = int(room * FILL_AFTER_DROP)
    first = bisect_left(candidates, -target, key=lambda first: -length_from(first)) + candidates.start
    prompt.conversation = prompt.conversation.starting_at(first)
    ids = prompt.encode()
    reserved = answer_tokens if min_answer_tokens is None else min_answer_tokens
    room = context_len - reserved
    if len(ids) > room:
        raise TooLarge(
            f"{newest}: {len(ids) - room} tokens too long. With {reserved} tokens for the answer, {room} of "
            f"the {context_len} tokens of the context remain for the message, its template and the system prompt."
        )
    return ids


def _drop_beyond(conversation: Conversation, max_chars: int, *, thoughts: bool) -> Conversation:
    """Return ``conversation`` without the oldest turns that exceed ``max_chars`` characters.

    :param thoughts: True if thoughts count.
    """
    first, chars = len(conversation.turns), 0
    for turn in reversed(conversation.turns[conversation.first :]):
        chars += turn.chars if thoughts else len(turn.user) + len(turn.answer)
        if chars > max_chars:
            break
        first -= 1
    return conversation.starting_at(first)
