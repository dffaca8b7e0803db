"""String replacements in streamed text, for example ``<NL>`` by a newline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aiochatstream.engines.base import Delta
from aiochatstream.engines.stream import OnDelta


class Replacements:
    """Replaces strings that may be split over several chunks; text is held back as long as it may become one.

    The text is scanned once, from left to right. At each position the first matching pair (old, new) of the list
    applies, and its replacement is not scanned again. Raises ValueError if an ``old`` string is empty.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        if not all(old for old, _ in pairs):
            raise ValueError("An empty string cannot be replaced.")
        self._pairs = tuple(pairs)
        self._pending = ""

    def push(self, text: str) -> str:
        """Add text; return the replaced text that later text cannot change."""
        return self._replace(self._pending + text, final=False)

    def flush(self) -> str:
        """Return the pending text at the end of the answer."""
        return self._replace(self._pending, final=True)

    def _replace(self, text: str, *, final: bool) -> str:
        """Replace in ``text``. Unless it is ``final``, hold back an end that later text may complete."""
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
                if not final and len(text) - at < len(old) and old.startswith(text[at:]):
                    self._pending = text[at:]
                    return "".join(done)
            else:
                done.append(text[at])
                at += 1
        self._pending = ""
        return "".join(done)


def apply_replacements(pairs: Sequence[tuple[str, str]], on_delta: OnDelta) -> OnDelta:
    """Return a function that calls ``on_delta`` with replacements in the text, but not in thoughts and tool calls."""
    replacements = Replacements(pairs)

    def replace_in(delta: Delta) -> None:
        if delta.thinking or delta.tool_calls:  # text before and after it is not joined
            if text := replacements.flush():
                on_delta(Delta(text))
            on_delta(delta)
            return
        text = replacements.push(delta.text)
        if delta.finish_reason is not None:
            text += replacements.flush()
        on_delta(replace(delta, text=text))

    return replace_in
