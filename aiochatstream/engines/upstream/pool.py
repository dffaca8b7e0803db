"""The servers behind this one: discovery, health, and slots for answers."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from aiochatstream.engines.base import LabelledMetric
from aiochatstream.engines.upstream import dialects
from aiochatstream.engines.upstream.choice import choose
from aiochatstream.engines.upstream.discovery import Resolve, Source, resolve, source_of
from aiochatstream.engines.upstream.server import UpstreamServer, UpstreamSlot
from aiochatstream.engines.upstream.session import UpstreamSession
from aiochatstream.engines.upstream.upstream import Upstream, check_slots, validated_upstreams
from aiochatstream.errors import UpstreamUnavailable
from aiochatstream.terminal import one_line, os_error_reason

logger = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
"""Maximum seconds of a probe."""

IDLE_PROBE_SECONDS = 5.0
"""Seconds between two probes of a server without answers."""

REFRESH_SECONDS = 5.0
"""Seconds between two readings of the addresses of a name, or of a list of servers."""

PROBE_ERRORS = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)  # TimeoutError is an OSError

RETRY_AFTER = 5
"""Seconds after which a client may try again while no server is up."""

MISCONFIGURED = {
    401: "the API key is missing or wrong",
    403: "the API key has no access",
    404: "there is no /v1/models",
}


@dataclass(eq=False)
class _Waiter:
    """A request that waits for a slot. It gets None if the pool closes."""

    key: str
    avoid: Collection[UpstreamServer]
    over_slots: bool
    slot: asyncio.Future[UpstreamSlot | None]


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
    :param connect: seconds to open a connection, with the name look-up and TLS.
    :param stall: seconds of silence of all answers of a server after which it counts as hung. If none of them has any
        output yet, as during a long prefill, only a server that does not respond to a probe counts as hung.
    :param model: name of the model; None for the only model of each server.
    :param resolve: look-up of addresses.
    :param refresh: seconds between two readings of the addresses of a name, or of a list of servers.

    Raise ValueError with a sentence if an argument is invalid.
    """

    on_capacity: Callable[[], None] = staticmethod(lambda: None)
    """Callback on the event loop after a change of the servers that are up, and so of :attr:`capacity`."""

    other_load: Callable[[str], int] = staticmethod(lambda name: 0)
    """Function that returns the number of answers that other fronts run on a server, given its name."""

    def __init__(
        self,
        sources: Sequence[str | Upstream],
        *,
        slots: int = 64,
        connect: float = 2.0,
        stall: float = 30.0,
        model: str | None = None,
        resolve: Resolve = resolve,
        refresh: float = REFRESH_SECONDS,
    ) -> None:
        check_slots(slots)
        self._slots, self._connect, self._stall, self._model = slots, connect, stall, model
        self._refresh = refresh
        upstreams = validated_upstreams(sources)
        self._listed: dict[Source, list[Upstream]] = {
            source_of(upstream, resolve, connect): [] for upstream in upstreams
        }
        self._errors: dict[Source, str] = {}
        self._servers: dict[str, UpstreamServer] = {}
        self._waiters: dict[_Waiter, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._recovering: set[UpstreamServer] = set()
        self._last_facts: list[tuple[str, str, int, int | None]] = []
        self._open = False

    async def open(self) -> None:
        """Find and probe the servers, and start to watch them. Servers that are down do not prevent the start."""
        self._open = True
        await asyncio.gather(*(self._read(source) for source in self._listed))
        await asyncio.gather(*(self._probe(server) for server in self._servers.values()))
        self._start(self._watch_silence())
        self._start(self._watch_idle())
        for source in self._listed:
            if not source.upstream.is_server:
                self._start(self._follow(source))

    async def close(self) -> None:
        """End all tasks and connections. Requests that wait get :class:`~aiochatstream.errors.UpstreamUnavailable`."""
        self._open = False
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._recovering.clear()
        for waiter in self._waiters:
            if not waiter.slot.done():
                waiter.slot.set_result(None)
        await asyncio.gather(*(server.session.close() for server in self._servers.values()))
        self._servers.clear()

    @property
    def upstreams(self) -> list[Upstream]:
        """Sources of the servers."""
        return [source.upstream for source in self._listed]

    @property
    def size(self) -> int:
        """Number of servers, those that are down included."""
        return len(self._servers)

    @property
    def servers(self) -> list[UpstreamServer]:
        """Servers that are up."""
        return [server for server in self._servers.values() if server.is_up]

    @property
    def capacity(self) -> int:
        """Number of answers that all servers that are up can generate concurrently."""
        return sum(server.limit for server in self.servers)

    def unavailable(self) -> UpstreamUnavailable | None:
        """Return the error that new requests get while no server is up; None while one is."""
        return None if self.capacity else _unavailable()

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
        slot = self._take(key, avoid, over_slots)
        if slot is not None:
            return slot
        if wait <= 0:
            raise _unavailable()
        deadline = time.monotonic() + wait
        waiter = _Waiter(key, avoid, over_slots, asyncio.get_running_loop().create_future())
        self._waiters[waiter] = None
        try:
            await asyncio.wait([waiter.slot], timeout=wait)
        except asyncio.CancelledError:
            if waiter.slot.done() and (slot := waiter.slot.result()) is not None:
                slot.release()
            raise
        finally:
            self._waiters.pop(waiter, None)
        slot = waiter.slot.result() if waiter.slot.done() else None
        if slot is None:
            raise _unavailable()
        if not slot.server.is_up:  # it has failed before this task could continue
            slot.release()
            left = deadline - time.monotonic()
            return await self.acquire(key, avoid=avoid, wait=left, over_slots=over_slots)
        return slot

    def metrics(self) -> list[LabelledMetric]:
        """Return the figures of each server.

        The seconds of first outputs, divided by the answers that have any, are the mean latency of a server.
        """
        figures: list[LabelledMetric] = []
        for server in self._servers.values():
            labels = {"server": server.name}
            values = {
                "upstream_up": server.is_up,
                "upstream_running": server.running,
                "upstream_failures_total": server.outages,
                "upstream_answers_total": server.answers,
                "upstream_first_output_seconds_total": server.first_output_seconds,
            }
            figures += [LabelledMetric(name, labels, value) for name, value in values.items()]
        return figures

    def _take(self, key: str, avoid: Collection[UpstreamServer], over_slots: bool) -> UpstreamSlot | None:
        """Return a slot; None if no server accepts a request."""
        servers = [server for server in self._servers.values() if server.accepts(over_slots=over_slots)]
        if not servers:
            return None
        candidates = [server for server in servers if server not in avoid] or servers
        return choose(key, candidates, self.other_load).new_slot()

    def _serve_waiters(self) -> None:
        """Give free slots to the requests that wait, in their order."""
        is_full = False
        for waiter in [*self._waiters]:
            if is_full and not waiter.over_slots:
                continue
            slot = self._take(waiter.key, waiter.avoid, waiter.over_slots)
            if slot is not None:
                del self._waiters[waiter]
                waiter.slot.set_result(slot)
            elif waiter.over_slots:
                return
            else:
                is_full = True

    def _changed(self, server: UpstreamServer) -> None:
        """Act on a change of the state of ``server``, or on the end of an answer."""
        if not self._open or self._servers.get(server.url) is not server:
            return
        if server.removed and not server.running:
            del self._servers[server.url]
            self._start(server.session.close())
        elif server.state != "up":
            self._start_recovery(server)
        facts = [(server.url, server.model, server.limit, server.context_len) for server in self.servers]
        if facts != self._last_facts:
            self._last_facts = facts
            self.on_capacity()
        self._serve_waiters()

    def _start_recovery(self, server: UpstreamServer) -> None:
        """Start to probe ``server`` unless that has begun: many answers report the same failure."""
        if server not in self._recovering:
            self._recovering.add(server)
            self._start(self._recover(server))

    async def _recover(self, server: UpstreamServer) -> None:
        """Probe ``server`` until it is up, or no longer listed."""
        try:
            while server.state != "up":
                await asyncio.sleep(server.next_probe_seconds())
                if server.removed:
                    return
                await self._probe(server)
        finally:
            self._recovering.discard(server)

    async def _probe(self, server: UpstreamServer) -> None:
        """Ask ``server`` for its model, and take it into use if it responds."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                facts = await dialects.probe(server.session, self._model)
        except aiohttp.ClientResponseError as error:
            if error.status in MISCONFIGURED:
                server.log_misconfiguration(f"{MISCONFIGURED[error.status]} (HTTP {error.status}).")
            server.probe_failed(f"HTTP {error.status}", refused=error.status == 503)
        except PROBE_ERRORS as error:
            server.probe_failed(_reason(error))
        else:
            server.probe_succeeded(facts)

    async def _watch_silence(self) -> None:
        """Find servers that hang, as long as the pool is open."""
        pause = self._stall
        while True:
            planned = time.monotonic() + pause
            await asyncio.sleep(pause)
            late = time.monotonic() - planned
            pause = self._stall
            for server in [*self._servers.values()]:
                if late > self._stall / 10:  # this process was stopped, and so could not read
                    server.note_response()
                pause = min(pause, self._stall - self._check_silence(server))
            pause = max(pause, 0.001)

    async def _watch_idle(self) -> None:
        """Probe the servers without answers, whose failure no request shows, as long as the pool is open."""
        while True:
            await asyncio.sleep(IDLE_PROBE_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - spreads several fronts
            await asyncio.gather(*(self._probe(server) for server in self.servers if not server.running))

    def _check_silence(self, server: UpstreamServer) -> float:
        """Return the seconds of silence of ``server``; a server that hangs is taken out of use."""
        seconds, has_output = server.silence()
        if seconds < self._stall:
            return seconds
        server.note_response()
        if has_output:
            server.hang(f"it has sent nothing for {self._stall:g} s.")
        else:
            self._start(self._hang_unless_alive(server))
        return 0.0

    async def _hang_unless_alive(self, server: UpstreamServer) -> None:
        """Take ``server`` out of use unless it responds to a probe, or sends data: a long prefill is silent, too."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await dialects.probe(server.session, self._model)
        except PROBE_ERRORS as error:
            seconds, _ = server.silence()
            if seconds < time.monotonic() - began:
                return
            server.hang(f"it has sent nothing for {self._stall:g} s; {_reason(error)}")

    async def _follow(self, source: Source) -> None:
        """Read ``source`` again and again."""
        while True:
            await asyncio.sleep(self._refresh * random.uniform(0.8, 1.2))  # noqa: S311 - spreads several fronts
            await self._refresh_from(source)

    async def _refresh_from(self, source: Source) -> None:
        """Read ``source``, and start to probe new servers."""
        for server in await self._read(source):
            self._start_recovery(server)

    async def _read(self, source: Source) -> list[UpstreamServer]:
        """Read the servers of ``source``, and return the new ones. If that fails, the former ones stay."""
        try:
            self._listed[source] = await source.read()
        except PROBE_ERRORS as error:
            reason = _reason(error)
            if self._errors.get(source) != reason:
                self._errors[source] = reason
                logger.warning("Upstream servers of %s are unknown: %s", source.upstream.url, reason)
            return []
        self._errors.pop(source, None)
        return self._update_servers()

    def _update_servers(self) -> list[UpstreamServer]:
        """Add servers that are newly listed, and return them; remove those that no source lists."""
        listed: dict[str, Upstream] = {}
        for upstreams in self._listed.values():
            for upstream in upstreams:
                listed.setdefault(upstream.url, upstream)
        for server in [*self._servers.values()]:
            server.set_removed(server.url not in listed)
        added = []
        for url, upstream in listed.items():
            if url not in self._servers:
                session = UpstreamSession(upstream, self._connect)
                self._servers[url] = UpstreamServer(upstream, session, upstream.slots or self._slots, self._changed)
                added.append(self._servers[url])
        return added

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _unavailable() -> UpstreamUnavailable:
    return UpstreamUnavailable("No server that generates answers is available at present.", retry_after=RETRY_AFTER)


def _reason(error: Exception) -> str:
    """Return the reason of a failed request, for the log."""
    if isinstance(error, TimeoutError):
        return "it does not respond."
    if isinstance(error, OSError):
        return f"{os_error_reason(error)}."
    return one_line(str(error) or type(error).__name__)
