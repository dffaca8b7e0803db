"""Tests of answers that real servers with a real model generate, and resume word for word."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aiochatstream import ChatStream, GenerationParams
from aiochatstream.engines.upstream import UpstreamEngine
from tests.helpers import ClientOf, Server, StartServer

PARAMS = GenerationParams(temperature=0.0, max_new_tokens=24)
QUESTION = "Name the planets, please."


class Deaths:
    """Number of events after which the connection that delivers them is cut, once."""

    def __init__(self, events: int) -> None:
        self.events_left = events
        self.happened = 0

    def counts(self, data: bytes) -> bool:
        """Count the events in ``data``; return True if the connection must be cut."""
        if self.happened or b"HTTP/1.1 200" in data[:20]:
            return False
        self.events_left -= data.count(b"data:")
        self.happened += self.events_left <= 0
        return bool(self.happened)


@asynccontextmanager
async def dying_proxy(port: int, deaths: Deaths) -> AsyncIterator[str]:
    """Yield the URL of a proxy of the server at ``port``."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool) -> None:
        while data := await reader.read(1 << 16):
            if counts and deaths.counts(data):
                break
            writer.write(data)
        writer.transport.abort()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        pumps = (pump(reader, upstream_writer, counts=False), pump(upstream_reader, writer, counts=True))
        await asyncio.gather(*pumps, return_exceptions=True)

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    finally:
        proxy.close()


@pytest.fixture
async def model_servers(
    start: StartServer, untouched_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[Server]:
    """Return two servers whose models share their weights."""
    weights = {id(weight): weight for weight in untouched_model.parameters()}
    models = [copy.deepcopy(untouched_model, dict(weights)) for _ in range(2)]
    return [await start(ChatStream(model=model, tokenizer=tokenizer, params=PARAMS)) for model in models]


async def test_an_answer_that_moves_between_real_servers_has_the_same_text(
    start: StartServer,
    client_of: ClientOf,
    model_servers: list[Server],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    direct = await client_of(model_servers[0]).say(QUESTION)
    for options, events in (({}, 2), ({}, 12), ({"tokenizer": tokenizer}, 2), ({"tokenizer": tokenizer}, 12)):
        deaths = Deaths(events)
        async with (
            dying_proxy(model_servers[0].port, deaths) as first,
            dying_proxy(model_servers[1].port, deaths) as second,
        ):
            engine = UpstreamEngine([first, second], **options)
            client = client_of(await start(ChatStream(engine=engine, params=PARAMS)))
            answer = await client.say(QUESTION)
            assert deaths.happened == 1
            assert engine.metrics()["upstream_resumptions_total"] == 1
        for usage in (answer["usage"], direct["usage"]):
            usage.pop("cached_tokens", None)
        assert {name: answer[name] for name in ("text", "usage", "finish_reason")} == {
            name: direct[name] for name in ("text", "usage", "finish_reason")
        }
