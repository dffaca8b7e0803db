"""Tests of recorded answers: recorded from the small model, and replayed without it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from aiochatstream import (
    ChatStream,
    FunctionEngine,
    GenerationParams,
    RecordingEngine,
    ReplayEngine,
)
from tests.helpers import Client, ClientOf, MakeStepper, StartServer, sse_events, until
from tests.small_engine import SmallEngine

QUESTIONS = ["What is the capital of France?", "日本の首都はどこですか？"]


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def streamed(client: Client, text: str | None = None, **body: Any) -> tuple[list[str], dict[str, Any]]:
    """Return the texts of a streamed answer, and the parts of its end that do not vary."""
    texts, end = [], {}
    async with client.post(accept="text/event-stream", user_input=text, **body) as response:
        async for name, data in sse_events(response):
            if name == "delta":
                texts.append(data["text"])
            else:
                end = data
    return texts, {name: end.get(name) for name in ("finish_reason", "usage", "error")}


async def converse(client: Client) -> list[Any]:
    """Send two messages, and regenerate the second answer twice, with different parameters."""
    sampled = {"temperature": 1.0, "seed": 5}
    return [
        await streamed(client, QUESTIONS[0]),
        await streamed(client, QUESTIONS[1], params={"max_new_tokens": 5}),
        await streamed(client, regenerate=True, params=sampled),
        await streamed(client, regenerate=True),
        await client.texts(),
    ]


@pytest.fixture
async def recorded(start: StartServer, client_of: ClientOf, small_engine: SmallEngine, tmp_path: Path) -> list[Any]:
    """Return the answers of the small model, whose recordings are in tmp_path."""
    chat_stream = ChatStream(
        engine=RecordingEngine(small_engine, tmp_path),
        params=GenerationParams(temperature=0, max_new_tokens=16),
    )
    server = await start(chat_stream)
    recorded = await converse(client_of(server))
    async with client_of(server).session.get(f"{server.url}/metrics") as response:
        assert "aiochatstream_decode_step_time_seconds_count 0.0" not in await response.text()
    return recorded


async def test_a_recorded_conversation_is_replayed_exactly(
    start: StartServer, client_of: ClientOf, recorded: list[Any], tmp_path: Path
) -> None:
    assert len(files(tmp_path)) == 4
    assert [end["finish_reason"] for _, end in recorded[:4]] != ["stop"] * 4
    assert all(end["usage"]["prompt_tokens"] > 20 for _, end in recorded[:4])
    assert len({"".join(texts) for texts, _ in recorded[:4]}) == 4
    server = await start(
        ChatStream(engine=ReplayEngine(tmp_path, speed=None), params=GenerationParams(temperature=0, max_new_tokens=16))
    )
    for _ in range(2):
        assert await converse(client_of(server)) == recorded


@pytest.mark.parametrize("accept", ["text/plain", "application/json"])
async def test_a_prompt_without_a_recording_is_a_404_and_leaves_no_turn(
    start: StartServer, client_of: ClientOf, recorded: list[Any], tmp_path: Path, accept: str
) -> None:
    client = client_of(
        await start(ChatStream(engine=ReplayEngine(tmp_path, speed=None), params=GenerationParams(temperature=0)))
    )
    async with client.post(accept=accept, user_input="Who are you?") as response:
        assert response.status == 404
        assert (await response.json())["error"] == "no_recording"
    _, end = await streamed(client, "Who are you?")
    assert end["error"]["error"] == "no_recording"
    assert await client.history() == []


async def test_concurrent_answers_are_recorded_separately(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, tmp_path: Path
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(engine=RecordingEngine(FunctionEngine(engine), tmp_path), params=GenerationParams(max_new_tokens=3))
    )
    running = [asyncio.create_task(client_of(server).say(text)) for text in ("one", "two")]
    await until(lambda: engine.running == 2)
    engine.allow(6)
    recorded = await asyncio.gather(*running)
    replaying = await start(ChatStream(engine=ReplayEngine(tmp_path, speed=None)))
    again = [await client_of(replaying).say(text) for text in ("one", "two")]
    assert [answer["text"] for answer in again] == [answer["text"] for answer in recorded] == ["1 2 3 "] * 2
    assert len(files(tmp_path)) == 2


async def test_a_stopped_answer_is_recorded_as_cancelled_and_interrupted_when_replayed(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, tmp_path: Path
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=RecordingEngine(FunctionEngine(engine), tmp_path)))
    client = client_of(server)
    engine.allow(1)
    async with client.post(accept="text/event-stream", user_input="Count.") as response:
        events = sse_events(response)
        while (await anext(events))[0] != "delta":
            pass
        stopping = asyncio.create_task(client.session.post(f"{client.url}/chat_stream/stop", json={}))
        await until(lambda: any(turn.ending for turn in server.chat_stream.running_turns))
        engine.allow(1)
        (await stopping).release()
    stopped = (await client.history())[1]
    assert stopped["state"] == "interrupted"
    (file,) = files(tmp_path)
    assert json.loads(file.read_text("utf-8").split("\n")[0])["finish_reason"] == "cancelled"
    client = client_of(await start(ChatStream(engine=ReplayEngine(tmp_path, speed=None))))
    played = await client.say("Count.")
    assert (played["finish_reason"], played["text"]) == ("cancelled", stopped["content"])
    assert (await client.history())[1]["state"] == "interrupted"


async def test_damaged_recordings_are_an_error_at_startup(start: StartServer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("rubbish")
    with pytest.raises(ValueError, match=r"notes\.txt is damaged or not a recording"):
        await start(ChatStream(engine=ReplayEngine(tmp_path)))
