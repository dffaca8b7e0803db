"""Replacements in a stream of text: what the model writes otherwise than people read it, a newline as ``<NL>`` say."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace

from aiochatstream.engines.base import Delta


class Replacements:
    """Replaces strings, also those that come in pieces, and holds back what may still become one.

    The text is read once, from left to right: at each place the first pair (from, to) of the list that fits is taken,
    and what it put in is not read again. Raises ValueError for an empty string to replace.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        if not all(old for old, _ in pairs):
            raise ValueError("An empty string cannot be replaced.")
        self._pairs = tuple(pairs)
        self._held = ""

    def push(self, text: str) -> str:
        """Add text; return what is certain now."""
        return self._read(self._held + text, more=True)

    def rest(self) -> str:
        """What was held back, once it is certain that nothing follows."""
        return self._read(self._held, more=False)

    def _read(self, text: str, *, more: bool) -> str:
        """Replace in ``text``, and hold back its end where it depends on what is to come (``more``)."""
        if not self._pairs:
            return text
        done = []
        at = 0
        while at < len(text):
            for old, new in self._pairs:
                if text.startswith(old, at):
                    done.append(new)
                    at += len(old)
                    break
                if more and len(text) - at < len(old) and old.startswith(text[at:]):
                    self._held = text[at:]
                    return "".join(done)
            else:
                done.append(text[at])
                at += 1
        self._held = ""
        return "".join(done)


def replaced(
    answer: Callable[[], Generator[Delta, None, None]], pairs: Sequence[tuple[str, str]]
) -> Generator[Delta, None, None]:
    """An answer with replacements in its text."""
    replacements = Replacements(pairs)
    with closing(answer()) as deltas:
        for delta in deltas:
            text = replacements.push(delta.text)
            if delta.finish_reason is not None:
                text += replacements.rest()
            yield replace(delta, text=text)
