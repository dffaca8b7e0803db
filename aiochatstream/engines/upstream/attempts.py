"""Limits of the attempts to generate one answer."""

from __future__ import annotations

import asyncio

from aiochatstream.engines.upstream.server import UpstreamServer
from aiochatstream.errors import UpstreamFailed, UpstreamUnavailable

BUSY_SECONDS = 30.0
"""Maximum time without new text in which an answer waits for a server: because all are busy, or down."""

ALL_BUSY = "The model's servers are busy. Try again later."


class Attempts:
    """Counts the attempts to generate an answer. New text starts the count again.

    avoid: servers that have failed since the last text.

    :param tries: maximum number of servers that fail without new text.
    """

    def __init__(self, tries: int) -> None:
        self.avoid: set[UpstreamServer] = set()
        self._tries = tries
        self._failures = 0
        self._loop = asyncio.get_running_loop()
        self._deadline: float | None = None

    @property
    def wait_seconds(self) -> float:
        """Seconds to wait for the next server."""
        if self._deadline is None:
            return BUSY_SECONDS
        return max(0.0, self._deadline - self._loop.time())

    def failed(self, server: UpstreamServer, *, has_new_text: bool) -> None:
        """Count a failure of ``server``.

        Raise :class:`~aiochatstream.errors.UpstreamFailed` after the last try.
        """
        if has_new_text:
            self._begin_again()
        self._failures += 1
        if self._failures >= self._tries:
            raise UpstreamFailed("The model's servers failed to answer. Try again later.")
        self._missed(server)

    def busy(self, server: UpstreamServer, *, has_new_text: bool) -> None:
        """Note that ``server`` is busy, or shuts down and has cut the answer off.

        Raise :class:`~aiochatstream.errors.UpstreamUnavailable` after :data:`BUSY_SECONDS` without new text.
        """
        if has_new_text:
            self._begin_again()
        self._missed(server)
        if not self.wait_seconds:
            raise UpstreamUnavailable(ALL_BUSY, retry_after=5)

    def _begin_again(self) -> None:
        self.avoid.clear()
        self._failures, self._deadline = 0, None

    def _missed(self, server: UpstreamServer) -> None:
        self.avoid.add(server)
        if self._deadline is None:
            self._deadline = self._loop.time() + BUSY_SECONDS
