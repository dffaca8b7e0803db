"""From turns to responses: what all endpoints that answer have in common."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import ExitStack, aclosing
from typing import Any, ClassVar

from aiohttp import web

from aiochatstream.errors import ChatStreamError
from aiochatstream.params import ParamOverrides
from aiochatstream.prompts import ChatInput, TextInput
from aiochatstream.runtime.events import Ended, Event, Failed, Heartbeat, Text
from aiochatstream.runtime.turns import RunningTurn
from aiochatstream.web.json import dumps, json_response
from aiochatstream.web.openai.errors import error_body, rename_field
from aiochatstream.web.server import Server
from aiochatstream.web.streaming.streamed_response import HEARTBEAT, HEARTBEAT_SECONDS, STREAM_HEADERS, Sending

EVENTS = "text/event-stream"


class Answer(ABC):
    """One response in the making: of one answer or several, streamed or whole."""

    names: Mapping[str, str] = {"max_new_tokens": "max_tokens", "constraint": "response_format"}
    """What the request calls fields that the engine calls otherwise."""

    prefix: ClassVar[str]
    """What its id begins with."""

    id = ""
    """The prefix, and what the log calls the (first) answer. Also the response's header ``X-Request-Id``."""

    async def prepare(self) -> None:  # noqa: B027 - most need nothing
        """Do what takes time before the first text. Called when the answers have their places."""

    @abstractmethod
    def take(self, index: int, text: Text) -> str:
        """What a stream tells of more text of answer ``index``, as server-sent events; may be empty."""

    @abstractmethod
    def end(self, index: int, ended: Ended) -> str:
        """What it tells of the end of one."""

    @abstractmethod
    def last(self) -> str:
        """What it tells when all have ended."""

    @abstractmethod
    def whole(self) -> Any:
        """What a response without a stream is, when all have ended."""

    def failed(self, error: ChatStreamError) -> str:
        """What a stream tells of a failure, at its end."""
        return sse(error_body(error))


def sse(data: Any) -> str:
    """A server-sent event."""
    return f"data: {dumps(data)}\n\n"


async def answer_with(
    server: Server,
    request: web.Request,
    given: ChatInput | TextInput,
    overrides: ParamOverrides,
    answer: Answer,
    *,
    stream: bool,
    owner: str,
    count: int = 1,
    **more: Any,
) -> web.StreamResponse:
    """Begin the answers, and tell of them as ``answer`` does, to the end or until the client leaves.

    A stream's headers go out with its first text, so that a failure before it has a status; where that takes long, with
    the first heartbeat.

    :param owner: who asks. more: both as :meth:`~aiochatstream.runtime.stateless.Stateless.begin_answers` has them.

    Raises what the request is to be refused with.
    """
    try:
        turns = await _while_present(
            server, request, server.begin_answers(given, overrides, count, owner=owner, **more)
        )
    except ChatStreamError as error:
        server.metrics.refused(error.code)
        rename_field(error, answer.names)
        raise
    if not turns:
        return web.Response(status=499)  # the client left; nobody reads this

    answer.id = f"{answer.prefix}{turns[0].message_id}"

    def stop() -> None:
        for turn in reversed(turns):  # those that have no place yet take none any more
            turn.stop("left")  # no effect on one that has ended

    sending = _Sending(request, server.limits.write_timeout, answer.id)
    write = _write_stream if stream else _write_whole

    async def respond() -> web.StreamResponse:
        await answer.prepare()
        return await write(sending, turns, answer)

    try:
        return await sending.carry_out(respond, server.presence, stop)
    finally:
        stop()


async def _while_present(
    server: Server, request: web.Request, beginning: Coroutine[Any, Any, list[RunningTurn]]
) -> list[RunningTurn]:
    """Return the result of ``beginning``. It is cancelled when the client leaves, and the result is empty then."""
    task = asyncio.create_task(beginning)
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    try:
        with server.presence.watch(request, leave):
            return await task
    except asyncio.CancelledError:
        if gone:
            return []
        raise


class _Sending(Sending):
    def __init__(self, request: web.Request, write_timeout: float, request_id: str) -> None:
        super().__init__(request, write_timeout)
        self.request_id = request_id

    @property
    def headers(self) -> dict[str, str]:
        return {**STREAM_HEADERS, "X-Request-Id": self.request_id}


async def _write_stream(sending: _Sending, turns: Sequence[RunningTurn], answer: Answer) -> web.StreamResponse:
    with ExitStack() as stack:
        for turn in turns:
            stack.enter_context(turn.heartbeats(HEARTBEAT_SECONDS))
        async with aclosing(_events(turns)) as events:
            async for index, event in events:
                if isinstance(event, Failed):
                    rename_field(event.error, answer.names)
                    if sending.response is None:
                        raise event.error
                    await sending.write(EVENTS, answer.failed(event.error))
                    return await sending.finish(EVENTS)
                told = ""
                if isinstance(event, Text):
                    told = answer.take(index, event)
                elif isinstance(event, Heartbeat):
                    told = HEARTBEAT
                elif isinstance(event, Ended):
                    told = answer.end(index, event)
                if told:
                    await sending.write(EVENTS, told)
        await sending.write(EVENTS, answer.last())
        return await sending.finish(EVENTS)


async def _write_whole(sending: _Sending, turns: Sequence[RunningTurn], answer: Answer) -> web.StreamResponse:
    async with aclosing(_events(turns)) as events:
        async for index, event in events:
            if isinstance(event, Failed):
                rename_field(event.error, answer.names)
                raise event.error
            if isinstance(event, Text):
                answer.take(index, event)
            elif isinstance(event, Ended):
                answer.end(index, event)
    return json_response(answer.whole(), headers=sending.headers)


async def _events(turns: Sequence[RunningTurn]) -> AsyncGenerator[tuple[int, Event], None]:
    """What happens in any of the turns, until all have ended."""
    if len(turns) == 1:
        async with aclosing(_events_of(turns[0])) as events:
            async for event in events:
                yield 0, event
        return
    happened: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def watch(index: int, turn: RunningTurn) -> None:
        async with aclosing(_events_of(turn)) as events:
            async for event in events:
                happened.put_nowait((index, event))

    watching = [asyncio.create_task(watch(index, turn)) for index, turn in enumerate(turns)]
    try:
        left = len(turns)
        while left:
            index, event = await happened.get()
            left -= isinstance(event, Ended | Failed)
            yield index, event
    finally:
        for task in watching:
            task.cancel()


async def _events_of(turn: RunningTurn) -> AsyncGenerator[Event, None]:
    event: Event | None = None
    while not isinstance(event, Ended | Failed):
        event = await turn.next_event()
        yield event
