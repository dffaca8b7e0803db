"""The prompt that fits: which turns the model is told of."""

from __future__ import annotations

from bisect import bisect_left

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.errors import TooLarge
from aiochatstream.prompts.base import AbstractChatPrompt

CHARS_PER_TOKEN = 16
"""No real text has more characters a token on average. A longer message is refused before it is tokenised, and of a
longer history only the end is, because encoding a megabyte holds the GIL for a second."""

KEEP_AFTER_CUT = 0.75
"""Share of the room that is left filled by a cut, so that the start of the prompt then stays for many turns."""


def fit(prompt: AbstractChatPrompt, *, context_len: int, max_new_tokens: int) -> list[int]:
    """The token ids of ``prompt``, with the answer's ``max_new_tokens`` at most ``context_len`` tokens.

    Where the history is too long, whole oldest turns are left out by moving ``prompt.conversation.first``; what the
    prompt class writes around the turns (the system message, the template's head) always stays. Blocking.

    Raises :class:`~aiochatstream.errors.TooLarge` when the newest message alone does not fit, with what its answer
    already says.
    """
    longest = CHARS_PER_TOKEN * context_len
    newest = "user_input, with the answer so far" if prompt.open_answer else "user_input"
    length = len(prompt.message) + len(prompt.open_answer)
    if length > longest:
        raise TooLarge(f"{newest}: {length} characters, at most {longest} are read.")
    prompt.conversation = _end_of(prompt.conversation, longest)
    room = context_len - max_new_tokens
    ids = prompt.encode()
    if len(ids) <= room:
        return ids

    def length_from(first: int) -> int:
        prompt.conversation = prompt.conversation.starting_at(first)
        return len(prompt.encode())

    turns = len(prompt.conversation.turns)
    candidates = range(prompt.conversation.first, turns)
    target = int(room * KEEP_AFTER_CUT)
    first = bisect_left(candidates, -target, key=lambda first: -length_from(first)) + candidates.start
    prompt.conversation = prompt.conversation.starting_at(first)
    ids = prompt.encode()
    if len(ids) > room:
        raise TooLarge(
            f"{newest}: {len(ids) - room} tokens too long. With max_new_tokens={max_new_tokens}, "
            f"a message has room for {room} of the {context_len} tokens of the context, those of template and system "
            "prompt included."
        )
    return ids


def _end_of(conversation: Conversation, chars: int) -> Conversation:
    """``conversation``, of which the model is told no more than the newest turns of so many characters."""
    first, read = len(conversation.turns), 0
    for turn in reversed(conversation.turns[conversation.first :]):
        read += len(turn.user) + len(turn.answer)
        if read > chars:
            break
        first -= 1
    return conversation.starting_at(first)
