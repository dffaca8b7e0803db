"""Generated text in which control tokens differ from ordinary text with the same characters."""

from __future__ import annotations

from typing import Any


class MarkedText:
    """The last part of a text, with the places of its control tokens.

    :param token_pattern: compiled pattern of the control tokens that may be in marks; None if there are none.
    """

    def __init__(self, token_pattern: Any) -> None:
        self.text = ""
        self._token_pattern = token_pattern
        self._trimmed = 0
        """Number of characters that were removed from the start."""
        self._tokens: set[int] = set()
        """Starts of control tokens, counted from the beginning of the whole text."""

    def append(self, text: str, *, control: bool) -> None:
        """Add ordinary text, or a control token."""
        if control:
            self._tokens.add(self._trimmed + len(self.text))
        self.text += text

    def trim(self, length: int) -> None:
        """Remove ``length`` characters from the start."""
        self.text = self.text[length:]
        self._trimmed += length
        if self._tokens:
            self._tokens = {start for start in self._tokens if start >= self._trimmed}

    def search(self, pattern: Any, start: int, *, partial: bool = False) -> Any:
        """Return the first match of ``pattern`` whose control tokens are tokens, not ordinary text; or None.

        :param partial: also find the beginning of a match at the end of the text.
        """
        match = pattern.search(self.text, start, partial=partial)
        while match is not None and not self._is_genuine(match.start(), match.end()):
            match = pattern.search(self.text, match.start() + 1, partial=partial)
        return match

    def match(self, pattern: Any, start: int, *, partial: bool = False) -> Any:
        """Return the match of ``pattern`` at ``start``, as :meth:`search` does."""
        match = pattern.match(self.text, start, partial=partial)
        return match if match is not None and self._is_genuine(match.start(), match.end()) else None

    def has(self, literal: str, at: int) -> bool:
        """Return True if ``literal`` is at index ``at``; a control token only as a token."""
        return self.text.startswith(literal, at) and self._is_genuine(at, at + len(literal))

    def find(self, literal: str, start: int) -> tuple[int | None, int]:
        """Find ``literal``; return the index after it, or None; and its index, or the end of text that is not part of
        it."""
        at = self.text.find(literal, start)
        while at >= 0 and not self._is_genuine(at, at + len(literal)):
            at = self.text.find(literal, at + 1)
        if at >= 0:
            return at + len(literal), at
        for length in range(min(len(literal) - 1, len(self.text) - start), 0, -1):
            if self.text.endswith(literal[:length]):
                return None, len(self.text) - length
        return None, len(self.text)

    def _is_genuine(self, start: int, end: int) -> bool:
        if self._token_pattern is None:
            return True
        matches = self._token_pattern.finditer(self.text, start, end)
        return all(self._trimmed + match.start() in self._tokens for match in matches)
