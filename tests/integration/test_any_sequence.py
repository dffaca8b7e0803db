"""Property tests of the history: after any sequence of actions, it equals a simple model.

A state machine performs turns, stops, disconnects, failures, edits, reloads, second tabs, repeated tokens, new keys and
changes of the worker, and compares the history with a list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
from aiohttp_session import AbstractStorage
from cryptography.fernet import Fernet
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from redis.asyncio import Redis

from aiochatstream import ChatStream, CookieStorage, GenerationParams, MemoryStorage
from aiochatstream.conversations.redis_store import RedisConversationStore
from aiochatstream.sessions.redis_storage import RedisStorage
from tests.helpers import Client, Server, running_server, sse_events, until
from tests.redis_server import RedisServer

Message = tuple[str, str, str]
"""A user's message, its answer, and the state of the answer."""

ANSWER = "1 2 "


def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
    """Yield "1 2"; fail or continue without end after "1" if the message requests it."""
    prompt = messages[-1]["content"]
    if prompt.startswith("break at once"):
        raise ZeroDivisionError
    yield "1 "
    if prompt.startswith("break"):
        raise ZeroDivisionError
    while prompt.startswith("hang"):
        yield ""
        time.sleep(0.001)
    yield "2 "


class Conversations(RuleBasedStateMachine):
    """One user's conversation, and the list that its history must equal."""

    workers = 1

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.expected: list[Message] = []
        self.tokens: list[str] = []
        self.held_by: int | None = None
        """The only worker that knows the last answer."""
        self.at = 0
        self.number = 0
        self.runner.run(self.open())

    def storage(self) -> AbstractStorage:
        return MemoryStorage()

    def chat_stream(self) -> ChatStream:
        return ChatStream(engine=engine, num_of_concurrent_executions=4)

    async def open(self) -> None:
        jar = aiohttp.CookieJar(unsafe=True)
        self.session = await self.stack.enter_async_context(aiohttp.ClientSession(cookie_jar=jar))
        self.servers = [await self.start() for _ in range(self.workers)]

    async def start(self) -> Server:
        return await self.stack.enter_async_context(running_server(self.chat_stream(), self.storage()))

    def teardown(self) -> None:
        try:
            self.at = self.at if self.held_by is None else self.held_by
            self.runner.run(self.check())
        finally:
            self.runner.run(self.stack.aclose())
            self.runner.close()

    @property
    def server(self) -> Server:
        return self.servers[self.at]

    @property
    def client(self) -> Client:
        return Client(self.session, self.server.url)

    @property
    def elsewhere(self) -> bool:
        """True if the current worker cannot know the last answer, and must respond with 409."""
        return self.held_by not in (None, self.at)

    def streamed(self) -> None:
        """Record that an answer has ended after its headers."""

    def new_text(self, beginning: str) -> str:
        self.number += 1
        return f"{beginning} {self.number}"

    async def check(self) -> None:
        messages = await self.client.history()
        pairs = zip(messages[::2], messages[1::2], strict=True)
        assert [(prompt["content"], answer["content"], answer["state"]) for prompt, answer in pairs] == self.expected
        self.ids = [message["message_id"] for message in messages[1::2]]
        assert len(set(self.ids)) == len(self.ids)
        self.held_by = None

    async def ask(self, accept: str, commits: bool, **body: Any) -> str:
        """Request an answer and return its outcome: "done" or an error code."""
        async with self.client.post(accept=accept, **body) as response:
            if response.status != 200:
                return str((await response.json())["error"])
            if accept == "application/json":
                self.held_by = None
                return "done"
            self.streamed()
            if accept == "text/event-stream":
                return await self.take_events(response, commits)
            try:
                await response.read()
            except aiohttp.ClientError:  # the only way to report an error after the headers of plain text
                return "internal_server_error"
        return "done"

    async def take_events(self, response: aiohttp.ClientResponse, commits: bool) -> str:
        name, last = [event async for event in sse_events(response)][-1]
        if token := last.get("commit"):
            self.tokens.append(token)
            if commits:
                await self.commit(token)
        return "done" if name == "done" else str(last["error"]["error"])

    async def commit(self, token: str) -> None:
        async with self.client.post("/commit", commit=token) as response:
            assert response.status == 200, await response.text()
        self.held_by = None

    @rule(
        accept=st.sampled_from(["application/json", "text/plain", "text/event-stream"]),
        commits=st.booleans(),
        kind=st.sampled_from(["say", "again", "edit"]),
        ending=st.sampled_from(["say", "say", "break", "break at once"]),
        place=st.integers(0, 9),
    )
    def turn(self, accept: str, commits: bool, kind: str, ending: str, place: int) -> None:
        self.runner.run(self.take_turn(accept, commits, kind, ending, place))

    async def take_turn(self, accept: str, commits: bool, kind: str, ending: str, place: int) -> None:
        text, base = self.new_text(ending), self.expected
        body: dict[str, Any] = {}
        if self.elsewhere:
            assert await self.ask(accept, commits, user_input=text) == "answer_elsewhere"
            return
        if kind == "say" or not self.expected:
            body = {"user_input": text}
        elif kind == "edit":
            await self.check()
            at = place % len(self.expected)
            base, body = self.expected[:at], {"user_input": text, "edit_message_id": self.ids[at]}
        else:
            base, text = self.expected[:-1], self.expected[-1][0]
            if text.startswith("hang"):
                return
            body = {"regenerate": True}
        how = await self.ask(accept, commits, **body)
        if text.startswith("break"):
            assert how == "internal_server_error"
            if body.keys() == {"user_input"} and not text.startswith("break at once"):
                self.expected = [*base, (text, "1 ", "interrupted")]
                if accept == "application/json":  # its headers follow the answer
                    self.held_by = None
        else:
            assert how == "done"
            self.expected = [*base, (text, ANSWER, "complete")]

    @rule(how=st.sampled_from(["stop", "leave"]), commits=st.booleans())
    def interrupt(self, how: str, commits: bool) -> None:
        self.runner.run(self.take_interrupted(how, commits))

    async def take_interrupted(self, how: str, commits: bool) -> None:
        if self.elsewhere:
            return
        text = self.new_text("hang")
        response = await self.client.post(accept="text/event-stream", user_input=text)
        events = sse_events(response)
        while (await anext(events))[0] != "delta":
            pass
        if how == "leave":
            response.close()
            self.streamed()
        else:
            async with self.client.post("/chat_stream/stop") as stopped:
                assert stopped.status == 200
            await self.take_rest(events, commits)
        await until(lambda: self.server.idle)
        self.expected = [*self.expected, (text, "1 ", "interrupted")]

    async def take_rest(self, events: Any, commits: bool) -> None:
        name, last = [event async for event in events][-1]
        assert name == "done"
        self.streamed()
        if token := last.get("commit"):
            self.tokens.append(token)
            if commits:
                await self.commit(token)

    @rule()
    def reload(self) -> None:
        self.runner.run(self.reload_page())

    async def reload_page(self) -> None:
        if self.elsewhere:
            async with self.session.get(f"{self.server.url}/history") as response:
                assert response.status == 409
        else:
            await self.check()

    @rule(place=st.integers(0, 9))
    def delete(self, place: int) -> None:
        self.runner.run(self.delete_turn(place))

    async def delete_turn(self, place: int) -> None:
        if self.elsewhere or not self.expected:
            return
        await self.check()
        at = place % len(self.expected)
        async with self.session.delete(f"{self.server.url}/history/{self.ids[at]}") as response:
            assert response.status == 200
        self.expected = [*self.expected[:at], *self.expected[at + 1 :]]

    @rule()
    def clear(self) -> None:
        self.runner.run(self.clear_all())

    async def clear_all(self) -> None:
        async with self.client.post("/clear_context") as response:
            assert response.status == 200
        self.expected, self.held_by = [], None

    @rule()
    def write_in_a_tab_that_has_seen_less(self) -> None:
        self.runner.run(self.write_late())

    async def write_late(self) -> None:
        if self.elsewhere or not self.expected:
            return
        async with self.session.get(f"{self.server.url}/history") as response:
            turn = (await response.json())["turn"]
        self.held_by = None
        how = await self.ask("application/json", True, user_input=self.new_text("say"), if_turn=turn - 1)
        assert how == "conversation_changed"

    @precondition(lambda self: self.tokens)
    @rule(place=st.integers(0, 99))
    def repeat_a_token(self, place: int) -> None:
        self.runner.run(self.send_again(self.tokens[place % len(self.tokens)]))

    async def send_again(self, token: str) -> None:
        """Send a token again: that of the newest turn is accepted, or ignored; others and old keys are refused."""
        newest = token == self.tokens[-1]
        async with self.client.post("/commit", commit=token) as response:
            assert response.status in ((200, 409, 400) if newest else (409, 400)), await response.text()
            if response.status == 200:
                self.held_by = None


class InCookie(Conversations):
    workers = 2

    def __init__(self) -> None:
        self.keys = [Fernet.generate_key()]
        super().__init__()

    def storage(self) -> AbstractStorage:
        return CookieStorage(list(self.keys))

    def streamed(self) -> None:
        self.held_by = self.at

    @rule()
    def ask_another_worker(self) -> None:
        self.at = 1 - self.at

    @rule()
    def deploy_with_a_new_key(self) -> None:
        """Replace the processes. Only what they remember is lost, no committed turn."""
        if self.held_by is None:
            self.keys = [Fernet.generate_key(), *self.keys[:1]]
            self.runner.run(self.deploy())

    async def deploy(self) -> None:
        # each cookie is set with the newest key before the oldest key is removed
        await self.check()
        self.servers = [await self.start() for _ in range(self.workers)]
        await self.ask("application/json", True, user_input=(text := self.new_text("say")))
        self.expected = [*self.expected, (text, ANSWER, "complete")]


class InRedis(Conversations):
    """Two workers that share all conversations."""

    workers = 2
    url: str
    redis: Redis

    def storage(self) -> AbstractStorage:
        return RedisStorage(self.redis)

    def chat_stream(self) -> ChatStream:
        store = RedisConversationStore(self.redis)
        return ChatStream(engine=engine, num_of_concurrent_executions=4, conversation_store=store)

    async def open(self) -> None:
        self.redis = await self.stack.enter_async_context(Redis.from_url(self.url))
        await super().open()

    @rule()
    def ask_another_worker(self) -> None:
        self.at = 1 - self.at

    @rule()
    def deploy(self) -> None:
        self.runner.run(self.start_anew())

    async def start_anew(self) -> None:
        self.servers = [await self.start() for _ in range(self.workers)]


def test_the_history_matches_the_model_with_memory_sessions() -> None:
    run(Conversations)


def test_the_history_matches_the_model_with_cookie_sessions() -> None:
    run(InCookie)


def test_the_history_matches_the_model_with_redis(redis_server: RedisServer) -> None:
    run(type("InThisRedis", (InRedis,), {"url": redis_server.url}))


def run(machine: type[Conversations]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
