"""The servers behind this one: discovery, health, and the choice among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from aiochatstream.engines.upstream.server import UpstreamServer, UpstreamSlot
from aiochatstream.engines.upstream.upstream import Upstream
from aiochatstream.errors import UpstreamUnavailable


class UpstreamPool:
    """All servers that a user or a discovery names, and their state. Used on one event loop only.

    ::

        with await pool.acquire(prompt.affinity, avoid=tried, wait=30) as slot:
            async with slot.server.session.request("POST", "/v1/chat/completions", json=body) as response:
                slot.on_hung = response.close
                async for chunk in response.content.iter_any():
                    slot.heard()

    :param sources: URLs, see :class:`Upstream`; at least one.
    :param slots: maximum number of concurrent answers of a server that specifies none, 1 to 100,000.
    :param connect: seconds to open a connection.
    :param stall: seconds of silence of all answers of a server after which it counts as hung.
    :param model: name of the model; None for the only model of each server.
    :param clock: monotonic seconds; for tests.

    Raise ValueError with a sentence if a source is invalid.
    """

    on_capacity: Callable[[], None]
    """Callback after a change of :attr:`capacity`, and so of :meth:`unavailable`."""

    def __init__(
        self,
        sources: Sequence[str | Upstream],
        *,
        slots: int = 64,
        connect: float = 2.0,
        stall: float = 30.0,
        model: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        raise NotImplementedError

    async def open(self) -> None:
        """Find and probe the servers, and start to watch them. Servers that are down do not prevent the start."""
        raise NotImplementedError

    async def close(self) -> None:
        """End all tasks and connections."""
        raise NotImplementedError

    @property
    def servers(self) -> list[UpstreamServer]:
        """Servers that are up."""
        raise NotImplementedError

    @property
    def capacity(self) -> int:
        """Number of answers that all servers that are up can generate concurrently."""
        raise NotImplementedError

    def unavailable(self) -> UpstreamUnavailable | None:
        """Return the error that new requests get while no server is up; None while one is."""
        raise NotImplementedError

    async def acquire(
        self,
        key: str,
        *,
        avoid: Collection[UpstreamServer] = (),
        wait: float = 0.0,
        over_slots: bool = False,
    ) -> UpstreamSlot:
        """Return a slot of the server to which ``key`` belongs, or of another if that is down, busy or overloaded.

        Raise :class:`~aiochatstream.errors.UpstreamUnavailable` if no server is available within ``wait``.

        :param key: equal for prompts with a common beginning.
        :param avoid: servers to use only if no other is available: those that have failed this request.
        :param wait: seconds to wait for a slot. Requests that wait are served in their order.
        :param over_slots: ignore the limit of slots, for an answer that had begun elsewhere.
        """
        raise NotImplementedError

    def metrics(self) -> list[tuple[str, dict[str, str], float]]:
        """Return name, labels and value of the figures of each server."""
        raise NotImplementedError
