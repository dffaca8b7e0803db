"""Answers of one request: their number, their slots, failures, heartbeats and metrics."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncStream

from aiochatstream import ChatStream, GenerationParams, Limits
from tests.helpers import ClientOf, MakeStepper, StartServer, echo, until
from tests.web.openai.helpers import HI, OpenAIClientOf


def failing_engine(messages: Any, params: GenerationParams) -> Iterator[str]:
    raise ZeroDivisionError("the engine broke")
    yield ""


@pytest.mark.parametrize("stream", [False, True])
async def test_one_request_returns_n_answers(start: StartServer, openai_of: OpenAIClientOf, stream: bool) -> None:
    server = await start(ChatStream(engine=echo, num_of_concurrent_executions=3, max_queue_size=0))
    client = openai_of(server)
    answer = await client.chat.completions.create(model="", messages=HI, n=3, stream=stream)
    texts = ["", "", ""]
    if isinstance(answer, AsyncStream):
        async for chunk in answer:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        texts = [choice.message.content or "" for choice in answer.choices]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 9
    assert texts == ["one two three "] * 3
    await until(lambda: server.idle)


async def test_n_answers_use_the_free_slots_and_the_rest_waits(
    start: StartServer, stepper: MakeStepper, openai_of: OpenAIClientOf
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=2, max_queue_size=1, params=GenerationParams(max_new_tokens=1)
        )
    )
    client, admission = openai_of(server), server.chat_stream.admission
    single = asyncio.create_task(client.chat.completions.create(model="", messages=HI))
    await until(lambda: engine.calls)
    five = asyncio.create_task(client.chat.completions.create(model="", messages=HI, n=5))
    await until(lambda: (admission.running, admission.waiting) == (2, 1))
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="", messages=HI)
    engine.allow(6)
    await single
    assert [choice.message.content for choice in (await five).choices] == ["1 "] * 5
    assert engine.most_running == 2
    assert server.idle


async def test_a_request_with_more_prompts_than_slots_alternates_with_others(
    start: StartServer, stepper: MakeStepper, openai_of: OpenAIClientOf
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=2, max_queue_size=1, params=GenerationParams(max_new_tokens=1)
        )
    )
    client, admission = openai_of(server), server.chat_stream.admission
    prompts = [str(number) for number in range(100)]
    many = asyncio.create_task(client.completions.create(model="", prompt=prompts, echo=True))
    await until(lambda: len(engine.calls) == 2)
    single = asyncio.create_task(client.chat.completions.create(model="", messages=HI))
    await until(lambda: admission.waiting == 1)
    engine.allow(101)
    await single
    assert HI in engine.calls[2:4]
    assert [choice.text for choice in (await many).choices] == [f"{prompt}1 " for prompt in prompts]
    assert engine.most_running == 2
    assert server.idle


async def test_waiting_for_answers_of_the_same_request_does_not_count_as_queueing(
    start: StartServer, stepper: MakeStepper, openai_of: OpenAIClientOf
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine,
            num_of_concurrent_executions=1,
            max_queue_size=0,
            params=GenerationParams(max_new_tokens=1),
            limits=Limits(max_queue_wait=0.01),
        )
    )
    answer = asyncio.create_task(openai_of(server).chat.completions.create(model="", messages=HI, n=2))
    await until(lambda: engine.calls)
    await asyncio.sleep(0.05)
    engine.allow(2)
    assert len((await answer).choices) == 2


@pytest.mark.parametrize("end", ["disconnect", "drain"])
async def test_the_rest_of_a_large_request_is_dropped_when_it_ends(
    start: StartServer, stepper: MakeStepper, openai_of: OpenAIClientOf, end: str
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=2, max_queue_size=1))
    many = asyncio.create_task(openai_of(server).completions.create(model="", prompt=["a"] * 50))
    await until(lambda: engine.running == 2)
    if end == "disconnect":
        many.cancel()
    else:
        server.chat_stream.drain()
    with pytest.raises(asyncio.CancelledError if end == "disconnect" else openai.InternalServerError):
        await many
    await until(lambda: server.stopping)
    engine.allow(4)
    await until(lambda: server.idle)
    assert len(engine.calls) == engine.closed == 2


async def test_a_failed_answer_ends_the_others_of_its_request(start: StartServer, openai_of: OpenAIClientOf) -> None:
    ended: list[str] = []

    def engine(messages: Any, params: GenerationParams) -> Iterator[str]:
        if params.seed is not None and params.seed % 2:
            raise ZeroDivisionError("the engine broke")
        try:
            while True:
                threading.Event().wait(0.001)  # an engine's step takes time
                yield "on "
        finally:
            ended.append("closed")

    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=1_000_000)))
    with pytest.raises(openai.InternalServerError, match="The model failed to answer"):
        await openai_of(server).chat.completions.create(model="", messages=HI, n=2, seed=4)
    await until(lambda: server.idle)
    assert ended == ["closed"]


async def test_the_request_id_is_the_answers_id_in_the_log(
    start: StartServer, openai_of: OpenAIClientOf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = openai_of(await start(ChatStream(engine=echo)))
    raw = await client.chat.completions.with_raw_response.create(model="", messages=HI)
    assert raw.headers["X-Request-Id"] == raw.parse().id
    assert f"answer {raw.parse().id.removeprefix('chatcmpl-')} finished_reason=stop" in caplog.text
    assert raw.headers["Cache-Control"] == "no-store"
    async with client.chat.completions.with_streaming_response.create(model="", messages=HI, stream=True) as streamed:
        assert streamed.headers["X-Request-Id"].startswith("chatcmpl-")


async def test_a_failure_before_the_first_text_has_a_status(start: StartServer, openai_of: OpenAIClientOf) -> None:
    server = await start(ChatStream(engine=failing_engine))
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="The model failed to answer") as failed:
            await openai_of(server).chat.completions.create(model="", messages=HI, stream=stream)
        assert "history" not in failed.value.message
        assert "engine broke" not in failed.value.message
    assert server.idle


async def test_the_client_raises_a_failure_after_the_first_text(
    start: StartServer, stepper: MakeStepper, openai_of: OpenAIClientOf
) -> None:
    engine = stepper(fail_at=1)
    server = await start(ChatStream(engine=engine))
    client = openai_of(server, strict=False)  # its completion chunks always have a finish_reason, unlike real ones
    engine.allow(6)
    streams: list[AsyncStream[Any]] = [
        await client.chat.completions.create(model="", messages=HI, stream=True),
        await client.completions.create(model="", prompt="hi", stream=True),
        await client.responses.create(model="", input="hi", stream=True),
    ]
    for stream in streams:
        with pytest.raises(openai.APIError, match="The model failed to answer"):
            async for _ in stream:
                pass


async def test_a_queued_stream_gets_heartbeats_and_then_a_refusal_as_an_event(
    start: StartServer,
    stepper: MakeStepper,
    client_of: ClientOf,
    openai_of: OpenAIClientOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiochatstream.web.openai.generation.HEARTBEAT_SECONDS", 0.01)
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine,
            num_of_concurrent_executions=1,
            max_queue_size=1,
            params=GenerationParams(max_new_tokens=1),
            limits=Limits(max_queue_wait=1),
        )
    )
    running = asyncio.create_task(openai_of(server).chat.completions.create(model="", messages=HI))
    await until(lambda: engine.calls)
    async with client_of(server).post("/v1/chat/completions", messages=HI, stream=True) as response:
        assert response.status == 200
        text = await response.text()
    assert text.startswith(": still here\n\n: still here\n\n")
    assert '"code":"too_many_requests"' in text
    assert "[DONE]" not in text
    engine.allow(1)
    await running
    assert server.idle


async def test_metrics_include_these_answers(
    start: StartServer, openai_of: OpenAIClientOf, client_of: ClientOf
) -> None:
    server = await start(ChatStream(engine=echo, num_of_concurrent_executions=2))
    await openai_of(server).chat.completions.create(model="", messages=HI, n=2)
    async with client_of(server).session.get(f"{server.url}/metrics") as response:
        metrics = await response.text()
    assert 'aiochatstream_requests_finished_total{finished_reason="stop"} 2.0' in metrics
    assert "aiochatstream_generation_tokens_total 6.0" in metrics
    assert "aiochatstream_sessions 0.0" in metrics
