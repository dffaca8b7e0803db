"""State of one upstream server, and the slots that its answers hold."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

from aiochatstream.engines.upstream.dialects import Dialect, Facts
from aiochatstream.engines.upstream.session import UpstreamSession
from aiochatstream.engines.upstream.upstream import Upstream

logger = logging.getLogger(__name__)

MIN_BACK_OFF, MAX_BACK_OFF = 0.5, 30.0
"""Seconds between two probes of a server that is down."""

LOCAL_BACK_OFF = 2.0
"""Maximum seconds between two probes of a unix socket, which cost nothing."""

BUSY_SECONDS, MIN_BUSY_SECONDS, MAX_BUSY_SECONDS = 1.0, 0.1, 5.0
"""Seconds without new requests for a busy server that specifies none, at least, and at most."""

MAX_ERRORS = 10
"""Error responses (5xx) in succession after which a server is down. A few may be the fault of one client's request,
which must not take the servers away from all others."""

ServerState = Literal["new", "up", "down", "draining"]

SENDING_SECONDS = 1.0
"""Seconds after the last data in which a server counts as sending."""


class UpstreamServer:
    """A server that the pool knows.

    :param on_change: called after each change of the state and after an answer has ended.
    """

    _facts: Facts

    def __init__(
        self, upstream: Upstream, session: UpstreamSession, slots: int, on_change: Callable[[UpstreamServer], None]
    ) -> None:
        self.url, self.name, self.slots = upstream.url, upstream.label, slots
        self.session = session
        self.state: ServerState = "new"
        self.removed = False
        self.outages = self.answers = 0
        self.first_output_seconds = 0.0
        self._on_change = on_change
        self._answers: dict[UpstreamSlot, None] = {}  # in the order of their starts
        self._heard_at = 0.0
        self._on_trial = False
        self._probes = self._errors = 0
        self._busy: asyncio.TimerHandle | None = None
        self._logged_misconfiguration = ""

    def __repr__(self) -> str:
        return f"<UpstreamServer {self.name} {self.state} running={self.running}/{self.slots}>"

    @property
    def dialect(self) -> Dialect:
        """Dialect of the server. A server that was never up has none."""
        return self._facts.dialect

    @property
    def model(self) -> str:
        """Name of the model in requests to this server. A server that was never up has none."""
        return self._facts.model

    @property
    def context_len(self) -> int | None:
        """Maximum number of tokens of prompt and answer together; None if unknown."""
        return self._facts.context_len

    @property
    def running(self) -> int:
        """Number of answers, those over the slots included."""
        return len(self._answers)

    @property
    def is_up(self) -> bool:
        """True if the server accepts new requests, unless it is busy or all slots are in use."""
        return self.state == "up" and not self.removed

    @property
    def limit(self) -> int:
        """Number of slots at present: only one after the server was found hung, until that answer has output."""
        return 1 if self._on_trial else self.slots

    def accepts(self, *, over_slots: bool) -> bool:
        """Return True if the server accepts a new request."""
        is_free = self.running < self.limit or (over_slots and not self._on_trial)
        return self.is_up and self._busy is None and is_free

    def new_slot(self) -> UpstreamSlot:
        """Return a slot for a new answer."""
        if all(slot.paused for slot in self._answers):
            self._heard_at = time.monotonic()
        slot = UpstreamSlot(self)
        self._answers[slot] = None
        return slot

    def next_probe_seconds(self) -> float:
        """Return seconds until the next probe: none for the first since the last output, then more for each."""
        if self._probes == 0:
            return 0.0
        longest = LOCAL_BACK_OFF if self.url.startswith("unix:") else MAX_BACK_OFF
        doubled = math.ldexp(MIN_BACK_OFF, min(self._probes - 1, 10))
        return min(longest, doubled * random.uniform(1, 1.5))  # noqa: S311 - spreads the probes of several fronts

    def probe_succeeded(self, facts: Facts) -> None:
        """Take the server into use."""
        if self.state == "up" and facts != self._facts:
            logger.warning(
                "Upstream server %s has another model or context length now: %s, %s tokens.",
                self.name,
                facts.model,
                facts.context_len,
            )
            self._facts = facts
            self._on_change(self)
        self._facts = facts
        self._probes += self.state in ("down", "draining")
        if self.state != "up":
            level = logging.WARNING if self.outages else logging.INFO  # as visible as the outage
            logger.log(level, "Upstream server %s is up, with model %s.", self.name, facts.model)
            self.state = "up"
            self._on_change(self)

    def probe_failed(self, reason: str, *, refused: bool = False) -> None:
        """Note that the server cannot be used.

        :param refused: the server responded that it is unavailable, so that one that is draining may still be.
        """
        self._probes += 1
        if self.state == "draining":
            if refused:
                return
            self._probes = 0  # it has ended, and may be back soon
        self._go_down(reason)

    def fail(self, reason: str) -> None:
        """Take the server out of use until a probe succeeds."""
        if self.state in ("up", "draining"):
            self._go_down(reason)

    def hang(self, reason: str) -> None:
        """Take a silent server out of use, and abort its answers."""
        self.fail(reason)
        self._on_trial = True
        self._heard_at = time.monotonic()
        for slot in [*self._answers]:
            slot.hung = True
            slot.on_hung()

    def note_error(self, reason: str) -> None:
        """Note an error response. After :data:`MAX_ERRORS` without an answer between them, the server is down."""
        self._errors += 1
        if self._errors >= MAX_ERRORS:
            self._errors = 0
            self.fail(reason)

    def drain(self) -> None:
        """Send no new requests until a probe succeeds."""
        if self.state == "up":
            logger.info("Upstream server %s is draining.", self.name)
            self.state, self._probes = "draining", 0
            self._on_change(self)

    def pause_requests(self, seconds: float | None) -> None:
        """Send no new requests for ``seconds``, or for the default if that is None."""
        seconds = BUSY_SECONDS if seconds is None else max(MIN_BUSY_SECONDS, min(MAX_BUSY_SECONDS, seconds))
        if self._busy is not None:
            self._busy.cancel()
        self._busy = asyncio.get_running_loop().call_later(seconds, self.resume_requests)
        self._on_change(self)

    def resume_requests(self) -> None:
        """End the pause of a busy server."""
        if self._busy is not None:
            self._busy.cancel()
            self._busy = None
            self._on_change(self)

    def set_removed(self, removed: bool) -> None:
        """Note that the server is no longer listed, or is listed again. Its answers continue."""
        if self.removed != removed:
            logger.info("Upstream server %s is %s.", self.name, "no longer listed" if removed else "listed again")
            self.removed = removed
            self._on_change(self)

    def log_misconfiguration(self, reason: str) -> None:
        """Log an error for the operator, once."""
        if self._logged_misconfiguration != reason:
            self._logged_misconfiguration = reason
            logger.error("Upstream server %s is misconfigured: %s", self.name, reason)

    def silence(self) -> tuple[float, bool]:
        """Return the seconds since any answer has received data, and True if one of the silent ones has output."""
        reading = [slot for slot in self._answers if not slot.paused]
        seconds = time.monotonic() - self._heard_at if reading else 0.0
        return seconds, any(slot.has_output for slot in reading)

    @property
    def is_sending(self) -> bool:
        """True if several answers run and at least one has received data within :data:`SENDING_SECONDS`."""
        return self.running > 1 and time.monotonic() - self._heard_at < SENDING_SECONDS

    def note_response(self) -> None:
        """Begin the silence anew."""
        self._heard_at = time.monotonic()

    def _go_down(self, reason: str) -> None:
        before, self.state = self.state, "down"
        starts = before == "new" and self.url.startswith("unix:")  # its socket does not exist yet
        if before in ("new", "up") and not self.removed and not starts:
            self.outages += 1
            logger.warning("Upstream server %s is down: %s", self.name, reason)
        if before != "down":
            self._on_change(self)

    def _note_first_output(self, seconds: float) -> None:
        self.answers += 1
        self._errors = 0
        self.first_output_seconds += seconds
        if self.state == "up":
            self._probes = 0
            if self._on_trial:
                self._on_trial = False
                self._on_change(self)

    def _free(self, slot: UpstreamSlot) -> None:
        self._answers.pop(slot, None)
        self._on_change(self)


class UpstreamSlot:
    """A slot of a server, held by one answer. Used in ``with``, which frees it; created by the pool.

    The methods report to the pool what happens to the answer. Reports of failures that belong to an outage that is
    already known have no effect.
    """

    server: UpstreamServer
    """Server to send the request to."""

    hung: bool
    """True after the server was found hung."""

    on_hung: Callable[[], None]
    """Callback that aborts the response of a server that was found hung; by default, it does nothing."""

    has_output: bool
    """True after the first output."""

    paused: bool
    """True while the reader waits for its own client."""

    def __init__(self, server: UpstreamServer) -> None:
        self.server = server
        self.hung = self.has_output = self.paused = False
        self.on_hung = lambda: None
        self._outages = server.outages
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Free the slot."""
        self.server._free(self)

    def heard(self, *, output: bool = True) -> None:
        """Report data from the server. Called for each chunk.

        :param output: the chunk contains generated text; False for headers, heartbeats and chunks without any.
        """
        self.server.note_response()
        self.paused = False
        if output and not self.has_output:
            self.has_output = True
            if self._is_current:
                self.server._note_first_output(time.monotonic() - self._start)

    def pause(self) -> None:
        """Report that the reader waits for its own client until the next :meth:`heard`: silence has no meaning."""
        self.paused = True

    def failed(self, reason: str) -> None:
        """Report a refused or reset connection, or a broken stream: the server is down.

        A probe brings it back: the first one is sent at once, then with a back-off of 0.5 to 30 s.

        :param reason: for the log, without keys and texts.
        """
        if self._is_current:
            self.server.fail(reason)

    def errored(self, reason: str) -> None:
        """Report a status 5xx, or an error in a stream, which may be the fault of the request.

        :param reason: for the log, without keys and texts.
        """
        if self._is_current:
            self.server.note_error(reason)

    def busy(self, retry_after: float | None) -> None:
        """Report 429 or 503 of a server that is full: it gets no new requests for ``retry_after`` s, at most 5."""
        self.server.pause_requests(retry_after)

    def draining(self) -> None:
        """Report a server that is shutting down: it gets no new requests until a probe succeeds."""
        if self._is_current:
            self.server.drain()

    def misconfigured(self, reason: str) -> None:
        """Report 401, 403 or 404, which an operator must correct. It is logged; the server stays in use.

        :param reason: for the log, without keys and texts.
        """
        self.server.log_misconfiguration(reason)

    @property
    def _is_current(self) -> bool:
        """True unless the server was down since the answer began."""
        return self._outages == self.server.outages
