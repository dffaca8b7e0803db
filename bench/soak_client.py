"""Users who remember what they said and what they were told, and compare it with the server's history."""

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
from aiochatstream.bench.request import Clock, Kind, Record, ask

HANG_UP_SECONDS = 0.03
"""Within this time one who hangs up early does so: often before the first text."""
REPLY_SECONDS = 30.0


@dataclass
class Memory:
    """What one user said in one conversation.

    answers: each message in order, with its answer where that is certain (it came whole, and none was asked for since).
    whole: messages that were once answered to the end, so that they must not get lost.
    late: the last message, if its client hung up before any reply: the server may come to it after what is asked next.
    """

    name: str
    answers: dict[str, str | None] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    late: str | None = None
    ever_said: int = 0

    @property
    def said(self) -> int:
        return len(self.answers)

    def new_message(self) -> str:
        """One that nobody else ever says."""
        self.ever_said += 1
        return f"{self.name}-m{self.ever_said}"

    def last_whole(self) -> str | None:
        """The newest message, if it was answered to the end: what a regenerated answer belongs to is then certain."""
        last = next(reversed(self.answers), "")
        return last if self.answers.get(last) is not None else None

    def note(self, message: str, record: Record) -> None:
        """An answer ended, in whatever way."""
        self.late = message if record.outcome == "aborted" and record.status is None else None
        if record.outcome == "completed":
            self.answers[message] = record.text
            self.whole.add(message)
        elif record.outcome != "refused":
            self.answers[message] = None

    def forget(self) -> None:
        """All was cleared, but what may yet come."""
        self.answers = {} if self.late is None else {self.late: None}
        self.whole.clear()

    def compare(self, messages: list[dict[str, Any]]) -> list[str]:
        """What is wrong with the server's ``messages``, a sentence each."""
        wrong = []
        order = list(self.answers)
        users = [message["content"] for message in messages if message["role"] == "user"]
        foreign = [text for text in users if text not in self.answers]
        wrong += [f"{self.name} has {text!r}, which it did not say" for text in foreign]
        known = [order.index(text) for text in users if text in self.answers]
        if known != sorted(set(known)):
            wrong.append(f"{self.name}: the messages are out of order or doubled: {users}")
        # over the context, a server drops the oldest: what came after the first one that is there must be there
        since = known[0] if known else len(order)
        wrong += [
            f"{self.name}: the whole turn {text!r} is lost" for text in order[since:] if text in self.whole - set(users)
        ]
        if not users and self.whole:
            wrong.append(f"{self.name}: the whole conversation is lost")
        for asked, answer in zip(messages[::2], messages[1::2], strict=False):
            expected = self.answers.get(asked["content"])
            if expected is not None and answer["content"] != expected:
                wrong.append(f"{self.name}: another answer to {asked['content']!r} than the one that was streamed")
        return wrong


class Talker:
    """One user with a cookie jar, who does one thing at a time."""

    def __init__(
        self, memory: Memory, plan: Plan, connector: aiohttp.TCPConnector, clock: Clock, rng: random.Random
    ) -> None:
        self.memory = memory
        self._clock, self._random, self._url = clock, rng, plan.url
        again = replace(plan, extra_body={"regenerate": True})
        # told that the server keeps no history, the load generator keeps the texts
        self._targets = {
            (wire, regenerate): Target(
                again if regenerate else plan, replace(PROTOCOLS[wire], keeps_history=False), connector
            )
            for wire in ("sse", "text")
            for regenerate in (False, True)
        }
        self._user = self._targets["sse", False].new_user()
        del self._user.session.headers["Accept"]

    async def close(self) -> None:
        await self._user.session.close()

    async def act(self, action: str) -> Record:
        """One request for an answer, in the way that ``action`` names."""
        match action:
            case "regenerate" if self.memory.last_whole():
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

    async def turn(self, wire: str, *, kind: Kind = "plain", regenerate: bool = False, early: bool = False) -> Record:
        """Say something new, or have the last message answered again."""
        memory, user = self.memory, self._user
        message = (memory.last_whole() if regenerate else None) or memory.new_message()
        record = Record(memory.ever_said, user.number, memory.said, kind)
        record.abort_after = self._random.randint(1, 12) if kind == "abort" else 0
        user.session.headers["Accept"] = PROTOCOLS[wire].accept
        user.messages.clear()
        try:
            async with asyncio.timeout(self._random.random() * HANG_UP_SECONDS if early else None):
                await ask(self._targets[wire, regenerate], user, message, record, self._clock)
        except TimeoutError:
            record.outcome = "aborted"
        except asyncio.CancelledError:  # the run is interrupted
            memory.answers[message] = None
            raise
        if record.status is None or record.status < 300:
            memory.note(message, record)
        return record

    async def clear(self) -> None:
        async with self._user.session.post(f"{self._url}/clear_context", timeout=_timeout()) as response:
            if response.status == 200:
                self.memory.forget()

    async def misbehave(self, bad: BadRequest) -> int:
        """The status that it is answered with; 400 where the server hangs up on it."""
        url = URL(self._url + bad.path, encoded=True)
        headers = {"Content-Type": bad.content_type}
        try:
            async with self._user.session.request(
                bad.method, url, data=bad.body, headers=headers, timeout=_timeout()
            ) as response:
                await response.read()
                return response.status
        except (aiohttp.ClientError, ConnectionError):
            return 400

    async def compare_history(self) -> tuple[int, list[str]]:
        """The status, and what is wrong with the history."""
        async with self._user.session.get(f"{self._url}/history", timeout=_timeout()) as response:
            if response.status != 200:
                return response.status, [f"{self.memory.name}: /history answers with HTTP {response.status}"]
            messages = (await response.json())["messages"]
        return 200, self.memory.compare(messages)


def _timeout() -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(REPLY_SECONDS)
