"""State of one upstream server, and the slots that its answers hold."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiochatstream.engines.upstream.dialects import Dialect
from aiochatstream.engines.upstream.session import UpstreamSession


class UpstreamServer:
    """A server that the pool knows."""

    name: str
    """Name in logs and labels of metrics. Clients never see it."""

    session: UpstreamSession
    """HTTP client of this server; ``server.session.request("POST", "/v1/completions", ...)``."""

    dialect: Dialect
    """Dialect of the server, known from the first successful probe; servers of :class:`UpstreamSlot` have it."""

    model: str
    """Name of the model in requests to this server; known from the first successful probe."""

    context_len: int | None
    """Maximum number of tokens of prompt and answer together; None if unknown."""

    slots: int
    """Maximum number of concurrent answers."""

    running: int
    """Number of answers."""


class UpstreamSlot:
    """A slot of a server, held by one answer. Used in ``with``, which frees it; created by the pool.

    The methods report to the pool what happens to the answer. Reports about an outage that is over have no effect.
    """

    server: UpstreamServer
    """The server to send the request to."""

    hung: bool
    """True after the server was found hung, just before :attr:`on_hung` is called."""

    on_hung: Callable[[], None]
    """Callback that aborts the response, because the server no longer sends anything; by default, it does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        raise NotImplementedError

    def heard(self, *, output: bool = True) -> None:
        """Report data from the server. Called for each chunk.

        :param output: the chunk contains generated text; False for headers, heartbeats and chunks without any.
        """
        raise NotImplementedError

    def pause(self) -> None:
        """Report that the reader waits for its own client, until it calls :meth:`heard` next: silence means nothing."""
        raise NotImplementedError

    def failed(self, reason: str) -> None:
        """Report a refused or reset connection, a status 5xx (except busy ones) or a broken stream: the server is down.

        A probe brings it back: the first one is sent at once, then with a back-off of 0.5 to 30 s.

        :param reason: for the log, without keys and texts.
        """
        raise NotImplementedError

    def busy(self, retry_after: float | None) -> None:
        """Report 429 or 503 of a server that is full: it gets no new requests for ``retry_after`` s, at most 5."""
        raise NotImplementedError

    def draining(self) -> None:
        """Report a server that is shutting down: it gets no new requests until a probe succeeds."""
        raise NotImplementedError

    def misconfigured(self, reason: str) -> None:
        """Report 401, 403 or 404, which an operator must correct. It is logged; the server stays in use."""
        raise NotImplementedError
