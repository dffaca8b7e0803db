"""Tests of the formats of chatstream and its older versions, with clients that follow their descriptions."""

from __future__ import annotations

import asyncio
import codecs
import random
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
import pytest

from aiochatstream import ChatStream, GenerationParams, Limits
from aiochatstream.web.streaming.formats import END_TOKEN, TurnResponse
from tests.helpers import Client, ClientOf, MakeStepper, PendingResponse, StartServer, echo, until

pytestmark = pytest.mark.both_loops

EOS = {"X-ChatStream-Wire": "cumulative-eos"}
OLDER = {"X-ChatStream-Wire": "cumulative"}

both = pytest.mark.parametrize("wire", [EOS, OLDER], ids=["chatstream", "older"])

ENGLISH = ["The capital", " of France", " is", " Paris", "."]
JAPANESE = ["フランス", "の首都は", "パリ", "です。", "🗼"]


@dataclass
class DocumentedClient:
    """A client that splits at the end token, shows the last complete chunk, and buffers the rest."""

    shown: list[str] = field(default_factory=list)
    _buffer: str = ""
    _decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    def feed(self, data: bytes) -> None:
        *chunks, self._buffer = (self._buffer + self._decoder.decode(data)).split("<::EOS::>")
        if chunks:
            self.shown.append(chunks[-1])

    @property
    def done(self) -> bool:
        return self._buffer == ""


@dataclass
class PiecewiseEngine:
    """An engine that yields each piece when the test allows it."""

    pieces: list[str]
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    closed: int = 0

    def __call__(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        try:
            for piece in self.pieces:
                self.permits.acquire()
                yield piece
            self.permits.acquire()
        finally:
            self.closed += 1

    def allow(self, steps: int = 1) -> None:
        self.permits.release(steps)


MakePiecewise = Callable[[list[str]], PiecewiseEngine]


@pytest.fixture
async def piecewise(start: StartServer) -> AsyncIterator[MakePiecewise]:
    """Yield a function that returns an engine for some pieces, which may finish after the test."""
    engines: list[PiecewiseEngine] = []

    def make(pieces: list[str]) -> PiecewiseEngine:
        engines.append(PiecewiseEngine(pieces))
        return engines[-1]

    yield make
    for engine in engines:
        engine.allow(10_000)


def ask(client: Client, wire: dict[str, str], **body: Any) -> PendingResponse:
    return client.session.post(f"{client.url}/chat_stream", json=body, headers=wire)


async def chunks_as_they_come(client: Client, wire: dict[str, str], engine: PiecewiseEngine) -> list[bytes]:
    """Return the chunks of an answer, allowing each piece after the arrival of the previous one."""
    engine.allow()
    chunks = []
    async with ask(client, wire, user_input="hi") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert uuid.UUID(response.headers["X-ChatStream-Last-Generated-Message-Id"]).version == 4
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        async for chunk, _ in response.content.iter_chunks():
            if chunk:  # the end of the body is an empty chunk
                chunks.append(chunk)
                engine.allow()
    return chunks


def prefixes(pieces: list[str]) -> list[str]:
    return ["".join(pieces[: count + 1]) for count in range(len(pieces))]


@pytest.mark.parametrize("pieces", [ENGLISH, JAPANESE], ids=["English", "Japanese"])
async def test_each_chunk_is_the_whole_answer_so_far_and_the_end_token(
    start: StartServer, client_of: ClientOf, piecewise: MakePiecewise, pieces: list[str]
) -> None:
    engine = piecewise(pieces)
    client = client_of(await start(ChatStream(engine=engine)))
    chunks = await chunks_as_they_come(client, EOS, engine)
    assert [chunk.decode() for chunk in chunks] == [text + "<::EOS::>" for text in prefixes(pieces)]
    assert await client.texts() == ["hi", "".join(pieces)]
    body = b"".join(chunks)
    dice = random.Random(1)  # noqa: S311
    for _ in range(300):
        reader = DocumentedClient()
        cuts = sorted(dice.choices(range(len(body) + 1), k=dice.randrange(30)))
        for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            reader.feed(body[begin:end])
        assert reader.done
        assert reader.shown[-1] == "".join(pieces)
        assert set(reader.shown) <= set(prefixes(pieces))


@pytest.mark.parametrize("pieces", [ENGLISH, JAPANESE], ids=["English", "Japanese"])
async def test_each_read_of_the_older_format_is_the_whole_answer_so_far(
    start: StartServer, client_of: ClientOf, piecewise: MakePiecewise, pieces: list[str]
) -> None:
    engine = piecewise(pieces)
    client = client_of(await start(ChatStream(engine=engine)))
    engine.allow()
    shown = []
    async with ask(client, OLDER, user_input="hi") as response:
        while read := await response.content.readany():
            shown.append(read.decode())
            engine.allow()
    assert shown == prefixes(pieces)


@pytest.mark.parametrize(
    ("wire_format", "headers"), [("text", EOS), ("sse", EOS | {"Accept": "text/event-stream"}), ("json", EOS)]
)
async def test_the_header_takes_precedence_over_the_option_and_over_accept(
    start: StartServer, client_of: ClientOf, wire_format: Any, headers: dict[str, str]
) -> None:
    client = client_of(await start(ChatStream(engine=echo, wire_format=wire_format)))
    async with ask(client, headers, user_input="a") as response:
        assert await response.text() == "a <::EOS::>"


@pytest.mark.parametrize("value", ["", "sse", "cumulative, cumulative-eos", "CUMULATIVE"])
async def test_an_unknown_value_of_the_header_is_a_400_with_the_valid_values(
    start: StartServer, client_of: ClientOf, value: str
) -> None:
    server = await start(ChatStream(engine=echo))
    async with ask(client_of(server), {"X-ChatStream-Wire": value}, user_input="hi") as response:
        assert response.status == 400
        error = await response.json()
    assert error["error"] == "bad_request"
    assert error["detail"] == "X-ChatStream-Wire: must be 'cumulative-eos' or 'cumulative', or absent."
    assert server.idle


@pytest.mark.parametrize(
    ("pieces", "arrives"),
    [
        (["<::EOS::>"], "<::EOS:: >"),
        (["Say <::", "EOS::", "> twice: <::EOS::><::EOS::>."], "Say <::EOS:: > twice: <::EOS:: ><::EOS:: >."),
        (["<::EO<::EOS::>", "S::>"], "<::EO<::EOS:: >S::>"),
        (["cut off: <::EOS::"], "cut off: <::EOS::"),
    ],
)
async def test_an_end_token_in_the_answer_does_not_break_the_framing(
    start: StartServer, client_of: ClientOf, piecewise: MakePiecewise, pieces: list[str], arrives: str
) -> None:
    engine = piecewise(pieces)
    client = client_of(await start(ChatStream(engine=engine)))
    chunks = await chunks_as_they_come(client, EOS, engine)
    reader = DocumentedClient()
    for chunk in chunks:
        assert chunk.decode().count(END_TOKEN) == 1
        reader.feed(chunk)
    assert len(reader.shown) == len(pieces)
    assert all(arrives.startswith(text) for text in reader.shown)
    assert reader.shown[-1] == arrives
    assert (await client.texts())[1] == "".join(pieces)


@both
async def test_text_that_accumulates_before_the_first_chunk_is_sent_once(
    start: StartServer,
    client_of: ClientOf,
    piecewise: MakePiecewise,
    monkeypatch: pytest.MonkeyPatch,
    wire: dict[str, str],
) -> None:
    engine = piecewise(["word "] * 200)

    save_session = TurnResponse.save_session

    async def slowly(response: TurnResponse) -> None:
        engine.allow(1_000)
        await until(response.turn.ended.is_set)
        await save_session(response)

    monkeypatch.setattr(TurnResponse, "save_session", slowly)
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=1_000)))
    engine.allow()
    async with ask(client_of(server), wire, user_input="hi") as response:
        chunks = [chunk.decode() async for chunk, _ in response.content.iter_chunks() if chunk]
    assert chunks == ["word " * 200 + ("<::EOS::>" if wire is EOS else "")]


@both
async def test_a_slow_client_gets_fewer_chunks_and_the_whole_answer(
    start: StartServer, client_of: ClientOf, piecewise: MakePiecewise, wire: dict[str, str]
) -> None:
    engine = piecewise(["x" * 10_000] * 200)
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=1_000)))

    def text_length() -> int:
        return max((len(turn.text) for turn in server.chat_stream.running_turns), default=0)

    engine.allow()
    client = client_of(server)
    async with ask(client, wire, user_input="hi") as response:
        for step in range(2, 201):  # each step is a separate delta, and the client reads nothing
            engine.allow()
            await until(partial(lambda length: text_length() == length, step * 10_000))
        engine.allow()
        await until(lambda: server.idle)
        body = (await response.read()).decode()
    assert body.removesuffix("<::EOS::>").endswith("x" * 2_000_000)
    assert len(body) < 10_000 * sum(range(1, 201)) / 4


@both
async def test_a_stopped_answer_ends_normally_with_its_text(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, wire: dict[str, str]
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    client = client_of(server)
    end = "<::EOS::>" if wire is EOS else ""
    engine.allow()
    async with ask(client, wire, user_input="hi") as response:
        assert (await response.content.readany()).decode() == "1 " + end
        stopping = asyncio.create_task(client.post("/chat_stream/stop").__aenter__())
        await until(lambda: all(turn.ending for turn in server.chat_stream.running_turns))
        engine.allow()
        rest = (await response.read()).decode()
        (await stopping).release()
    assert rest in ("", "1 2 " + end)
    text = "1 2 " if rest else "1 "
    assert [(m["content"], m.get("state")) for m in await client.history()] == [("hi", None), (text, "interrupted")]
    assert server.idle


@both
async def test_a_failed_answer_never_looks_complete(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, wire: dict[str, str]
) -> None:
    engine = stepper(fail_at=1)
    client = client_of(await start(ChatStream(engine=engine)))
    engine.allow()
    async with ask(client, wire, user_input="hi") as response:
        assert (await response.content.readany()).decode().startswith("1 ")
        engine.allow()
        with pytest.raises(aiohttp.ClientError):
            await response.read()


@both
async def test_regenerate_replaces_the_answer(start: StartServer, client_of: ClientOf, wire: dict[str, str]) -> None:
    answers = iter(["first", "second"])

    def answer(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        yield next(answers)

    client = client_of(await start(ChatStream(engine=answer)))
    end = "<::EOS::>" if wire is EOS else ""
    async with ask(client, wire, user_input="hi") as response:
        assert await response.text() == "first" + end
    async with ask(client, wire, user_input=None, regenerate=True) as response:
        assert await response.text() == "second" + end
        message_id = response.headers["X-ChatStream-Last-Generated-Message-Id"]
    history = await client.history()
    assert [message["content"] for message in history] == ["hi", "second"]
    assert history[1]["message_id"] == message_id


@both
async def test_refused_requests_have_their_status(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, wire: dict[str, str]
) -> None:
    engine = stepper(fail_at=0)
    limits = Limits(overload_status=429)
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=0, limits=limits))

    async def refusal(**body: Any) -> tuple[int, str]:
        async with ask(client_of(server), wire, **body) as response:
            return response.status, (await response.json())["error"]

    assert await refusal(user_input="") == (422, "invalid_value")
    assert await refusal(regenerate=True) == (409, "nothing_to_regenerate")
    failing = asyncio.create_task(refusal(user_input="hi"))
    await until(lambda: engine.calls)
    assert await refusal(user_input="hi") == (429, "too_many_requests")
    engine.allow()
    assert await failing == (500, "internal_server_error")
    assert server.idle
