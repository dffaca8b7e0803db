"""Errors, as OpenAI's client raises them."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from aiochatstream import ChatStream, GenerationParams, Limits
from tests.helpers import PATIENCE, ClientOf, MakeStepper, StartServer, echo, serving, until
from tests.web.openai.helpers import HI, OpenAIClientOf

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 3}, "temperature", "must be a number from 0 (greedy) to 2"),
    ({"max_tokens": 0}, "max_tokens", "must be a whole number of tokens from 1"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "must be a whole number of tokens from 1"),
    ({"extra_body": {"audio": {"voice": "x"}}}, "audio", "is not supported"),
    ({"stop": ""}, "stop", "must be a string, or a list of up to 16, of 1 to 128 characters each"),
    ({"functions": [{"name": "f"}]}, "functions", "is not supported"),
    ({"reasoning_effort": "highest"}, "reasoning_effort", "must be "),
    ({"verbosity": "low"}, "verbosity", "is not supported"),
    ({"top_logprobs": 3}, "top_logprobs", "must only be sent with logprobs=true"),
    ({"logprobs": True}, "logprobs", "not supported by this engine"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported by this engine"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must be sent with type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
    ({"tool_choice": "required"}, "tool_choice", "must not be 'required' without tools"),
    ({"messages": []}, "messages", "1 to 2048 messages"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content",
        "'image_url' are not supported, only text parts",
    ),
]


async def test_invalid_and_unsupported_fields_are_a_400_with_the_field(
    start: StartServer, openai_of: OpenAIClientOf
) -> None:
    server = await start(ChatStream(engine=echo))
    client = openai_of(server)
    for fields, param, message in REFUSED:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**{"model": "", "messages": HI, **fields})
        assert refused.value.param == param
        assert refused.value.type == "invalid_request_error"
        assert message in refused.value.message
    assert server.idle


async def test_longer_answers_are_shortened_unless_the_server_is_strict(
    start: StartServer, openai_of: OpenAIClientOf
) -> None:
    params = GenerationParams(max_new_tokens=2)
    client = openai_of(await start(ChatStream(engine=echo, params=params)))
    strict = openai_of(await start(ChatStream(engine=echo, params=params, limits=Limits(strict_max_tokens=True))))
    for field in ("max_tokens", "max_completion_tokens"):
        for length in (3, 4000, 10**9):
            requested: Any = {"model": "", "messages": HI, field: length}
            answer = await client.chat.completions.create(**requested)
            assert answer.usage is not None
            assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (2, "length")
            with pytest.raises(openai.BadRequestError, match="must be from 1 to 2 on this server") as refused:
                await strict.chat.completions.create(**requested)
            assert refused.value.param == field
    response = await client.responses.create(model="", input="one two three", max_output_tokens=4000)
    assert response.status == "incomplete"
    completion = await client.completions.create(model="", prompt="one two three", max_tokens=4000)
    assert completion.choices[0].finish_reason == "length"


async def test_the_client_raises_its_error_for_each_status(
    start: StartServer, client_of: ClientOf, openai_of: OpenAIClientOf
) -> None:
    server = await start(ChatStream(engine=echo, limits=Limits(max_request_bytes=1024)))
    client = openai_of(server)
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model="gpt-4", messages=HI)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.APIStatusError) as too_large:
        await client.completions.create(model="", prompt="x" * 1024)
    assert (too_large.value.status_code, too_large.value.code) == (413, "too_large")
    with pytest.raises(openai.BadRequestError) as best_of:
        await client.completions.create(model="", prompt="x", n=1, best_of=2)
    assert best_of.value.param == "best_of"
    for path, body, status in (("/v1/completions", b"{", 400), ("/v1/completions", b"[]", 400)):
        raw = client_of(server).session
        async with raw.post(server.url + path, data=body, headers={"Content-Type": "application/json"}) as response:
            assert response.status == status
            assert (await response.json())["error"]["type"] == "invalid_request_error"
    async with client_of(server).session.post(f"{server.url}/v1/completions", data=b"prompt=x") as response:
        assert response.status == 415
        assert response.headers["X-Request-Id"]


@pytest.mark.parametrize("status", [503, 429])
async def test_the_client_retries_after_a_full_queue(
    start: StartServer,
    stepper: MakeStepper,
    openai_of: OpenAIClientOf,
    monkeypatch: pytest.MonkeyPatch,
    status: Literal[503, 429],
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine,
            num_of_concurrent_executions=1,
            max_queue_size=0,
            params=GenerationParams(max_new_tokens=1),
            limits=Limits(overload_status=status),
        )
    )
    monkeypatch.setattr(server.chat_stream.admission, "retry_after", lambda: 1)
    running = asyncio.create_task(openai_of(server).chat.completions.create(model="", messages=HI))
    await until(lambda: engine.calls)
    kind = openai.RateLimitError if status == 429 else openai.InternalServerError
    with pytest.raises(kind) as refused:
        await openai_of(server).chat.completions.create(model="", messages=HI)
    assert refused.value.status_code == status
    assert refused.value.response.headers["Retry-After"] == "1"
    assert refused.value.response.headers["Retry-After-Ms"] == "1000"
    assert refused.value.code == "too_many_requests"
    patient = asyncio.create_task(openai_of(server, max_retries=3).chat.completions.create(model="", messages=HI))
    engine.allow(2)
    assert (await patient).choices[0].message.content == "1 "
    await running
    assert server.idle


async def test_the_client_does_not_retry_if_the_model_failed_to_load() -> None:
    def load() -> Any:
        raise OSError("no such model")

    app, chat_stream = web.Application(), ChatStream(model=load, tokenizer=load)
    chat_stream.setup_openai(app)
    async with serving(app) as url:
        with pytest.raises(OSError, match="no such model"):
            await chat_stream.wait_ready()
        async with (
            asyncio.timeout(PATIENCE),
            AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client,
        ):  # with the client's default of two retries
            with pytest.raises(openai.InternalServerError, match="The model could not be loaded") as failed:
                await client.chat.completions.create(model="", messages=HI)
    assert failed.value.code == "starting"
