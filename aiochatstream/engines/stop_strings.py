"""Stop strings in a stream of text: they end the answer and never show, not even in part."""

from __future__ import annotations


class StopStrings:
    """Lets text through that can no longer become a stop string, and holds the rest back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; return what may be shown now, and whether a stop string was met (then nothing is held)."""
        if not self._stops:
            return text, False
        text = self._held + text
        met = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if met:
            self._held = ""
            _, start = min(met)  # the one that was complete first, so that it does not matter how the text comes
            return text[:start], True
        keep = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def rest(self) -> str:
        """What is held back, once it is certain that nothing follows."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of ``text`` that is a beginning of ``stop``."""
        longest = min(len(text), len(stop) - 1)
        return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
