"""Tests of the selection of a format, and of heartbeats."""

from __future__ import annotations

import pytest

from aiochatstream import ChatStream, GenerationParams
from aiochatstream.web.streaming.formats import choose_format
from tests.helpers import ClientOf, MakeStepper, StartServer

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
