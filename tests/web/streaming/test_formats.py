"""Tests of the selection of a format, and of heartbeats."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from aiochatstream import ChatStream, Delta, GenerationParams, Limits, ToolCall
from aiochatstream.runtime.events import Event, Heartbeat
from aiochatstream.runtime.running_turn import RunningTurn
from aiochatstream.web.streaming.formats import TurnResponse, choose_format
from tests.helpers import (
    STUCK_THOUGHT,
    THOUGHTFUL,
    Client,
    ClientOf,
    DeltaEngine,
    MakeStepper,
    StartServer,
    post_bytes,
    sse_events,
    until,
)
from tests.web.raw_requests import default_server

pytestmark = pytest.mark.both_loops


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ([], "text"),
        (["*/*"], "text"),
        (["text/plain"], "text"),
        (["text/event-stream"], "sse"),
        (["application/json"], "json"),
        (["image/png"], "text"),
        (["application/json;q=0.5, text/event-stream"], "sse"),
        (["application/json, text/plain, */*"], "json"),
        (["image/png, */*;q=0.1"], "text"),
        (["text/event-stream;q=0, application/json;q=0.1"], "json"),
        (["text/event-stream; charset=utf-8"], "sse"),
        (["TEXT/EVENT-STREAM"], "sse"),
        (["application/json;q=rubbish"], "text"),
        (["application/json;q=nan, text/plain"], "text"),
        ([";;,,q=="], "text"),
        (["image/png", "application/json"], "json"),
    ],
)
def test_accept_selects_the_format(accept: list[str], chosen: str) -> None:
    assert choose_format(accept, "text") == chosen


@pytest.mark.parametrize("accept", [[], ["*/*"], ["image/png"]])
def test_the_servers_default_is_for_clients_without_a_preference(accept: list[str]) -> None:
    assert choose_format(accept, "sse") == "sse"
    assert choose_format(["text/plain"], "sse") == "text"


async def test_an_idle_event_stream_contains_heartbeats(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiochatstream.web.streaming.formats.HEARTBEAT_SECONDS", 0.01)
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=1)))
    async with client_of(server).post(accept="text/event-stream", user_input="hi") as response:
        data = b""
        while data.count(b": still here\n\n") < 3:
            data += await response.content.readany()
        engine.allow()
        data += await response.read()
    assert data.endswith(b"}\n\n")
    assert b"event: done" in data


@pytest.mark.parametrize("wire", ["", "X-ChatStream-Wire: cumulative\r\n", "X-ChatStream-Wire: cumulative-eos\r\n"])
async def test_clients_detect_truncated_answers_with_http_1_0_over_a_unix_socket(
    stepper: MakeStepper, tmp_path: Path, wire: str
) -> None:
    # a unix socket cannot be reset, so an answer is sent with its length or not at all
    engine = stepper()
    chat_stream = ChatStream(
        engine=engine, params=GenerationParams(max_new_tokens=2), limits=Limits(shutdown_timeout=0.05)
    )
    async with default_server(chat_stream) as server:
        await web.UnixSite(server.runner, tmp_path / "socket").start()

        async def ask() -> bytes:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "socket")
            writer.write(post_bytes('{"user_input":"hi"}', version="1.0", headers=wire))
            try:
                return await reader.read()
            finally:
                writer.transport.abort()

        engine.allow(2)
        whole = await ask()
        length = len(whole.partition(b"\r\n\r\n")[2])
        assert f"Content-Length: {length}\r\n".encode() in whole
        assert b"1 2 " in whole
        asking = asyncio.create_task(ask())
        engine.allow(1)
        await until(lambda: any(turn.text == "1 " for turn in chat_stream.running_turns))
        ending = asyncio.create_task(server.runner.cleanup())
        await until(lambda: server.stopping)
        engine.allow(1)
        assert b"200 OK" not in await asking
        await ending


async def body_of(client: Client, accept: str, **headers: str) -> str:
    async with client.session.post(
        client.url + "/chat_stream", json={"user_input": "hi"}, headers={"Accept": accept, **headers}
    ) as response:
        assert response.status == 200
        return await response.text()


async def test_an_event_stream_contains_thoughts_in_their_own_events(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL))))
    async with client.post(accept="text/event-stream", user_input="hi") as response:
        events = [event async for event in sse_events(response)]
    texts = [(name, data["text"]) for name, data in events if "text" in data]
    assert texts == [("thinking", "Let me "), ("thinking", "see."), ("delta", "It is "), ("delta", "four.")]
    assert events[-1][1]["finish_reason"] == "stop"
    assert (events[-1][1]["usage"]["completion_tokens"], events[-1][1]["usage"]["thinking_tokens"]) == (7, 4)


async def test_a_json_response_contains_the_thoughts_if_there_are_any(start: StartServer, client_of: ClientOf) -> None:
    answer = await client_of(await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)))).say("hi")
    assert (answer["text"], answer["thinking"]) == ("It is four.", "Let me see.")
    answer = await client_of(await start(ChatStream(engine=DeltaEngine(Delta("four.", finish_reason="stop"))))).say(
        "hi"
    )
    assert "thinking" not in answer
    answer = await client_of(await start(ChatStream(engine=DeltaEngine(*STUCK_THOUGHT)))).say("hi")
    assert (answer["text"], answer["thinking"], answer["finish_reason"]) == ("", "Let me ", "thinking_length")


async def test_plain_formats_contain_only_the_answer(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL))))
    assert await body_of(client, "text/plain") == "It is four."
    assert (await body_of(client, "*/*", **{"X-ChatStream-Wire": "cumulative"})).endswith("It is four.")
    whole = await body_of(client, "*/*", **{"X-ChatStream-Wire": "cumulative-eos"})
    assert whole.split("<::EOS::>")[-2:] == ["It is four.", ""]
    assert "Let me" not in whole


@pytest.mark.parametrize("wire", ["", "cumulative", "cumulative-eos"])
async def test_plain_formats_send_their_headers_during_a_long_thought(
    start: StartServer, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    monkeypatch.setattr("aiochatstream.web.streaming.formats.HEARTBEAT_SECONDS", 0.01)
    headers = {"X-ChatStream-Wire": wire} if wire else {}
    may_answer = threading.Event()
    thought, *answer = THOUGHTFUL
    engine = DeltaEngine(thought, may_answer, *answer)
    client = client_of(await start(ChatStream(engine=engine, limits=Limits(write_timeout=0.1))))
    async with client.session.post(
        client.url + "/chat_stream", json={"user_input": "hi"}, headers=headers
    ) as response:  # the headers are here, the answer is not
        may_answer.set()
        assert response.status == 200
        assert "It is four." in await response.text()


async def test_plain_formats_send_no_headers_before_the_thought(
    start: StartServer, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiochatstream.web.streaming.formats.HEARTBEAT_SECONDS", 0.01)
    heartbeats = 0
    may_fail = threading.Event()

    class Counting(TurnResponse):
        async def open(self, content_type: str) -> web.StreamResponse:
            raise AssertionError("sent the headers")

    async def count(turn: RunningTurn) -> Event:
        nonlocal heartbeats
        event = await next_event(turn)
        heartbeats += isinstance(event, Heartbeat)
        if heartbeats == 3:
            may_fail.set()
        return event

    next_event = RunningTurn.next_event
    monkeypatch.setattr(RunningTurn, "next_event", count)
    monkeypatch.setattr("aiochatstream.web.endpoints.chat.TurnResponse", Counting)

    def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        may_fail.wait()
        raise ZeroDivisionError
        yield ""

    async with client_of(await start(ChatStream(engine=engine))).post(user_input="hi") as response:
        assert response.status == 500
    assert heartbeats >= 3


async def test_calls_of_tools_that_nobody_offered_are_text(start: StartServer, client_of: ClientOf) -> None:
    call = ToolCall("f", "{}", '<tool_call>{"name": "f"}</tool_call>')
    engine = DeltaEngine(Delta("Yes. "), Delta(tool_calls=(call,)), Delta(finish_reason="stop"))
    client = client_of(await start(ChatStream(engine=engine)))
    assert await body_of(client, "text/plain") == f"Yes. {call.text}"
    assert (await client.texts())[-1] == f"Yes. {call.text}"
