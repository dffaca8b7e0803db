"""Stop strings in streamed text. They end the answer and are never part of it, not even partially."""

from __future__ import annotations


class StopStrings:
    """Filter that holds back text as long as it may become a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._pending = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; return the text that can be shown and whether a stop string was found.

        After a stop string no text is pending.
        """
        if not self._stops:
            return text, False
        text = self._pending + text
        matches = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            self._pending = ""
            _, start = min(matches)  # the first complete match, so that the result does not depend on the chunks
            return text[:start], True
        length = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._pending = text[len(text) - length :]
        return text[: len(text) - length], False

    def flush(self) -> str:
        """Return the pending text at the end of the answer."""
        pending, self._pending = self._pending, ""
        return pending

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Return the length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
        longest = min(len(text), len(stop) - 1)
        return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
