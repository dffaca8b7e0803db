"""Clients of the soak test, which compare the server's history with their own record of it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from bad_requests import BadRequest
from yarl import URL

from aiochatstream.bench.plan import Plan
from aiochatstream.bench.protocols import PROTOCOLS, Target
from aiochatstream.bench.request import Clock, RequestKind, RequestRecord, send_request

DISCONNECT_SECONDS = 0.03
"""Maximum seconds until an early disconnect, often before the first text."""
REPLY_SECONDS = 30.0


@dataclass
class ExpectedHistory:
    """Expected contents of a conversation.

    answers: answer to each message, in order; None if unknown (incomplete, or regenerated since).
    completed: messages that had a complete answer at some time, which the server must keep.
    pending: last message, if its client disconnected before any reply. The server may handle it after later requests.
    """

    name: str
    answers: dict[str, str | None] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    pending: str | None = None
    message_count: int = 0

    def new_message(self) -> str:
        """Return a message that is unique among all clients."""
        self.message_count += 1
        return f"{self.name}-m{self.message_count}"

    def last_completed(self) -> str | None:
        """Return the last message if its answer is known, so that a regenerated answer belongs to it."""
        last = next(reversed(self.answers), "")
        return last if self.answers.get(last) is not None else None

    def record(self, message: str, record: RequestRecord) -> None:
        """Record the outcome of the request that sent ``message``."""
        self.pending = message if record.outcome == "aborted" and record.status is None else None
        if record.outcome == "completed":
            self.answers[message] = record.text
            self.completed.add(message)
        elif record.outcome != "refused":
            self.answers[message] = None

    def clear(self) -> None:
        """Expect an empty conversation, except for the pending message."""
        self.answers = {} if self.pending is None else {self.pending: None}
        self.completed.clear()

    def differences(self, messages: list[dict[str, Any]]) -> list[str]:
        """Return the differences between ``messages`` of the server and the expected ones, a sentence each."""
        differences = []
        order = list(self.answers)
        user_texts = [message["content"] for message in messages if message["role"] == "user"]
        unknown = [text for text in user_texts if text not in self.answers]
        differences += [f"{self.name}: the message {text!r} is not from this client" for text in unknown]
        positions = [order.index(text) for text in user_texts if text in self.answers]
        if positions != sorted(set(positions)):
            differences.append(f"{self.name}: messages are out of order or duplicated: {user_texts}")
        # a server drops the oldest turns if the context is full, but none after the first that remains
        first = positions[0] if positions else len(order)
        lost = self.completed - set(user_texts)
        differences += [f"{self.name}: the completed turn {text!r} is lost" for text in order[first:] if text in lost]
        if not user_texts and self.completed:
            differences.append(f"{self.name}: the conversation is lost")
        for message, answer in zip(messages[::2], messages[1::2], strict=False):
            expected = self.answers.get(message["content"])
            if expected is not None and answer["content"] != expected:
                differences.append(f"{self.name}: the answer to {message['content']!r} differs from the streamed one")
        return differences


class SoakClient:
    """A client with a cookie jar that executes one action at a time."""

    def __init__(
        self, history: ExpectedHistory, plan: Plan, connector: aiohttp.TCPConnector, clock: Clock, rng: random.Random
    ) -> None:
        self.history = history
        self._clock, self._random, self._url = clock, rng, plan.url
        regenerating = replace(plan, extra_body={"regenerate": True})
        # the load generator records texts only for stateless protocols
        self._targets = {
            (wire, regenerate): Target(
                regenerating if regenerate else plan, replace(PROTOCOLS[wire], stateful=False), connector
            )
            for wire in ("sse", "text")
            for regenerate in (False, True)
        }
        self._user = self._targets["sse", False].new_user()
        del self._user.session.headers["Accept"]

    async def close(self) -> None:
        await self._user.session.close()

    async def act(self, action: str) -> RequestRecord:
        """Send one request for an answer, in the way that ``action`` specifies."""
        match action:
            case "regenerate" if self.history.last_completed():
                return await self.turn("sse", regenerate=True)
            case "abort streaming":
                return await self.turn("sse", kind="abort")
            case "abort early":
                return await self.turn("sse", early=True)
            case "slow reader":
                return await self.turn("sse", kind="slow")
            case "turn, text":
                return await self.turn("text")
            case _:
                return await self.turn("sse")

    async def turn(
        self, wire: str, *, kind: RequestKind = "plain", regenerate: bool = False, early: bool = False
    ) -> RequestRecord:
        """Send a new message, or regenerate the last answer."""
        history, user = self.history, self._user
        message = (history.last_completed() if regenerate else None) or history.new_message()
        record = RequestRecord(history.message_count, user.number, len(history.answers), kind)
        record.abort_after = self._random.randint(1, 12) if kind == "abort" else 0
        user.session.headers["Accept"] = PROTOCOLS[wire].accept
        user.messages.clear()
        try:
            async with asyncio.timeout(self._random.random() * DISCONNECT_SECONDS if early else None):
                await send_request(self._targets[wire, regenerate], user, message, record, self._clock)
        except TimeoutError:
            record.outcome = "aborted"
        except asyncio.CancelledError:  # the run is interrupted
            history.answers[message] = None
            raise
        if record.status is None or record.status < 300:
            history.record(message, record)
        return record

    async def clear(self) -> None:
        async with self._user.session.post(f"{self._url}/clear_context", timeout=_timeout()) as response:
            if response.status == 200:
                self.history.clear()

    async def send_bad_request(self, request: BadRequest) -> int:
        """Return the status of the response, or 400 if the server closes the connection."""
        url = URL(self._url + request.path, encoded=True)
        headers = {"Content-Type": request.content_type}
        try:
            async with self._user.session.request(
                request.method, url, data=request.body, headers=headers, timeout=_timeout()
            ) as response:
                await response.read()
                return response.status
        except (aiohttp.ClientError, ConnectionError):
            return 400

    async def check_history(self) -> tuple[int, list[str]]:
        """Return the status of /history, and the differences from the expected messages."""
        async with self._user.session.get(f"{self._url}/history", timeout=_timeout()) as response:
            if response.status != 200:
                return response.status, [f"{self.history.name}: /history responds with HTTP {response.status}"]
            messages = (await response.json())["messages"]
        return 200, self.history.differences(messages)


def _timeout() -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(REPLY_SECONDS)
