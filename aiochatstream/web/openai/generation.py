"""Responses of the endpoints that generate text, whole or streamed."""

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
from aiochatstream.runtime.events import (
    AnswerTokens,
    Ended,
    Event,
    Failed,
    Heartbeat,
    PromptTokens,
    Text,
    Thinking,
    ToolCalls,
)
from aiochatstream.runtime.running_turn import RunningTurn
from aiochatstream.web.json import dumps, json_response
from aiochatstream.web.openai.choice_tokens import ChoiceTokens
from aiochatstream.web.openai.errors import error_body, rename_field
from aiochatstream.web.server import Server
from aiochatstream.web.streaming.streamed_response import HEARTBEAT, HEARTBEAT_SECONDS, STREAM_HEADERS, StreamedResponse

EVENTS = "text/event-stream"


class ResponseBuilder(ABC):
    """Builder of a response from the answers of one request, each with an index.

    The methods that build a stream return server-sent events, or an empty string.
    """

    field_names: Mapping[str, str] = {"max_new_tokens": "max_tokens", "constraint": "response_format"}
    """Names of request fields by the engine's name, if the two differ."""

    id_prefix: ClassVar[str]

    id = ""
    """Id of the response, also sent in the header ``X-Request-Id``: the prefix, and the id of the first answer in the
    log."""

    async def prepare(self) -> None:  # noqa: B027 - most need nothing
        """Do slow preparations. Called before the first text, when all answers have slots or places in the queue."""

    @abstractmethod
    def add_text(self, index: int, text: Text) -> str:
        """Add a piece of an answer; return its events."""

    def add_thinking(self, index: int, thinking: Thinking) -> str:
        """Add a piece of the thoughts before an answer; return its events. Plain texts have no thoughts."""
        return ""

    def add_calls(self, index: int, calls: ToolCalls) -> str:
        """Add calls of tools; return their events. There are none unless the request contains tools."""
        return ""

    def tokens(self, index: int) -> ChoiceTokens:
        """Return the token ids of an answer. Called only if the client requests them."""
        raise NotImplementedError

    @abstractmethod
    def end_answer(self, index: int, ended: Ended) -> str:
        """End an answer; return the events of its end."""

    @abstractmethod
    def last_events(self) -> str:
        """Return the events of the end of the stream, when all answers have ended."""

    @abstractmethod
    def body(self) -> Any:
        """Return the JSON of a response without a stream, when all answers have ended."""

    def add_event(self, index: int, event: Event) -> str:
        """Add an event of an answer; return its events in the stream."""
        match event:
            case Text():
                return self.add_text(index, event)
            case Thinking():
                return self.add_thinking(index, event)
            case ToolCalls():
                return self.add_calls(index, event)
            case AnswerTokens():
                self.tokens(index).add(event.token_ids)
            case PromptTokens():
                self.tokens(index).begin(event.token_ids)
            case Ended():
                return self.end_answer(index, event)
        return ""

    def failure_event(self, error: ChatStreamError) -> str:
        """Return the event of a failure, the last one of its stream."""
        return sse(error_body(error))


def sse(data: Any) -> str:
    """Return ``data`` as a server-sent event."""
    return f"data: {dumps(data)}\n\n"


async def generate(
    server: Server,
    request: web.Request,
    model_input: ChatInput | TextInput,
    overrides: ParamOverrides,
    builder: ResponseBuilder,
    *,
    stream: bool,
    owner: str,
    count: int = 1,
    **params: Any,
) -> web.StreamResponse:
    """Generate the answers and send the response of ``builder``, until the end or until the client disconnects.

    The headers of a stream are sent with the first text or thought, so that an earlier failure has an HTTP status; if
    both take long, with the first heartbeat.

    :param owner: owner of the prompts.
    :param count: answers per prompt.
    :param params: further parameters of :meth:`~aiochatstream.runtime.stateless.Stateless.begin_answers`.

    Raise :class:`~aiochatstream.errors.ChatStreamError` if the request is refused.
    """
    try:
        turns = await _cancel_on_disconnect(
            server, request, server.begin_answers(model_input, overrides, count, owner=owner, **params)
        )
    except ChatStreamError as error:
        server.metrics.refused(error.code)
        rename_field(error, builder.field_names)
        raise
    if not turns:
        return web.Response(status=499)  # not sent: the client has disconnected

    builder.id = f"{builder.id_prefix}{turns[0].message_id}"

    def stop() -> None:
        for turn in reversed(turns):  # queued turns first, so that they do not get the slots of stopped ones
            turn.stop("left")  # no effect after the end

    response = _OpenAIResponse(request, server.limits.write_timeout, builder.id)
    write = _write_stream if stream else _write_body

    async def respond() -> web.StreamResponse:
        await builder.prepare()
        return await write(response, turns, builder)

    try:
        return await response.send(respond, server.disconnects, stop)
    finally:
        stop()


async def _cancel_on_disconnect(
    server: Server, request: web.Request, begin: Coroutine[Any, Any, list[RunningTurn]]
) -> list[RunningTurn]:
    """Return the result of ``begin``, or an empty list if the client disconnects first."""
    task = asyncio.create_task(begin)
    disconnected = False

    def cancel() -> None:
        nonlocal disconnected
        disconnected = True
        task.cancel()

    try:
        with server.disconnects.watch(request, cancel):
            return await task
    except asyncio.CancelledError:
        if disconnected:
            return []
        raise


class _OpenAIResponse(StreamedResponse):
    def __init__(self, request: web.Request, write_timeout: float, request_id: str) -> None:
        super().__init__(request, write_timeout)
        self.request_id = request_id

    @property
    def headers(self) -> dict[str, str]:
        return {**STREAM_HEADERS, "X-Request-Id": self.request_id}


async def _write_stream(
    response: _OpenAIResponse, turns: Sequence[RunningTurn], builder: ResponseBuilder
) -> web.StreamResponse:
    with ExitStack() as stack:
        for turn in turns:
            stack.enter_context(turn.heartbeats(HEARTBEAT_SECONDS))
        async with aclosing(_events(turns)) as events:
            async for index, event in events:
                if isinstance(event, Failed):
                    rename_field(event.error, builder.field_names)
                    if response.stream is None:
                        raise event.error
                    await response.write(EVENTS, builder.failure_event(event.error))
                    return await response.finish(EVENTS)
                text = HEARTBEAT if isinstance(event, Heartbeat) else builder.add_event(index, event)
                if text:
                    await response.write(EVENTS, text)
        await response.write(EVENTS, builder.last_events())
        return await response.finish(EVENTS)


async def _write_body(
    response: _OpenAIResponse, turns: Sequence[RunningTurn], builder: ResponseBuilder
) -> web.StreamResponse:
    async with aclosing(_events(turns)) as events:
        async for index, event in events:
            if isinstance(event, Failed):
                rename_field(event.error, builder.field_names)
                raise event.error
            builder.add_event(index, event)
    return json_response(builder.body(), headers=response.headers)


async def _events(turns: Sequence[RunningTurn]) -> AsyncGenerator[tuple[int, Event], None]:
    """Yield the events of all turns, each with the index of its turn, until all turns have ended."""
    if len(turns) == 1:
        async with aclosing(_turn_events(turns[0])) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def forward(index: int, turn: RunningTurn) -> None:
        async with aclosing(_turn_events(turn)) as events:
            async for event in events:
                queue.put_nowait((index, event))

    tasks = [asyncio.create_task(forward(index, turn)) for index, turn in enumerate(turns)]
    try:
        running = len(turns)
        while running:
            index, event = await queue.get()
            running -= isinstance(event, Ended | Failed)
            yield index, event
    finally:
        for task in tasks:
            task.cancel()


async def _turn_events(turn: RunningTurn) -> AsyncGenerator[Event, None]:
    event: Event | None = None
    while not isinstance(event, Ended | Failed):
        event = await turn.next_event()
        yield event
