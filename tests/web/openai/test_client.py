"""OpenAI's own client, sync and async, against what it expects of a server."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI, OpenAI

from aiochatstream import ChatStream, GenerationParams, Limits
from tests.helpers import PATIENCE, echo, serving, until

HI = [{"role": "user", "content": "one two three"}]


def fails(messages: Any, params: GenerationParams) -> Iterator[str]:
    raise ZeroDivisionError("the engine broke")
    yield ""


async def test_the_sync_client_gets_models_answers_and_streams(start: Any) -> None:
    server = await start(ChatStream(engine=echo))

    def use() -> None:
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            (model,) = client.models.list()
            assert model == client.models.retrieve(model.id)
            answer = client.chat.completions.create(model=model.id, messages=HI)
            (choice,) = answer.choices
            assert (choice.message.role, choice.message.content) == ("assistant", "one two three ")
            assert choice.finish_reason == "stop"
            assert answer.model == model.id
            chunks = list(client.chat.completions.create(model=model.id, messages=HI, stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three "
            text = client.completions.create(model=model.id, prompt="a b", echo=True)
            assert text.choices[0].text == "a ba b "
            with client.responses.stream(model=model.id, input="a b", instructions="Be short.") as stream:
                assert stream.get_final_response().output_text == "a b "

    await asyncio.to_thread(use)
    assert server.idle


async def test_a_stream_is_the_role_then_text_then_the_reason_then_usage(start: Any, openai_of: Any) -> None:
    client = openai_of(await start(ChatStream(engine=echo)))
    stream = await client.chat.completions.create(
        model="", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    *told, usage = chunks
    deltas = [chunk.choices[0].delta for chunk in told]
    assert [delta.role for delta in deltas] == ["assistant", None, None, None, None]
    assert [delta.content for delta in deltas] == ["", "one ", "two ", "three ", None]
    assert [chunk.choices[0].finish_reason for chunk in told] == [None, None, None, None, "stop"]
    assert all(chunk.usage is None for chunk in told)
    assert usage.choices == []
    assert usage.usage.completion_tokens == 3
    assert usage.usage.prompt_tokens_details.cached_tokens == 0


async def test_a_stream_without_usage_has_none_and_ends_with_done(start: Any, client_of: Any) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    async with client.post("/v1/chat/completions", messages=HI, stream=True) as response:
        text = await response.text()
        assert response.content_type == "text/event-stream"
        assert response.headers["X-Accel-Buffering"] == "no"
    assert text.endswith("data: [DONE]\n\n")
    assert "usage" not in text


@pytest.mark.parametrize("stream", [False, True])
async def test_n_answers_come_of_one_request(start: Any, openai_of: Any, stream: bool) -> None:
    server = await start(ChatStream(engine=echo, num_of_concurrent_executions=3, max_queue_size=0))
    client = openai_of(server)
    answer = await client.chat.completions.create(model="", messages=HI, n=3, stream=stream)
    texts = ["", "", ""]
    if stream:
        async for chunk in answer:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        texts = [choice.message.content for choice in answer.choices]
        assert answer.usage.completion_tokens == 9
    assert texts == ["one two three "] * 3
    await until(lambda: server.idle)


async def test_n_answers_take_the_places_that_are_free_and_the_others_follow(
    start: Any, stepper: Any, openai_of: Any
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=2, max_queue_size=1, params=GenerationParams(max_new_tokens=1)
        )
    )
    client, admission = openai_of(server), server.chat_stream.admission
    one = asyncio.create_task(client.chat.completions.create(model="", messages=HI))
    await until(lambda: engine.calls)
    five = asyncio.create_task(client.chat.completions.create(model="", messages=HI, n=5))
    await until(lambda: (admission.running, admission.waiting) == (2, 1))
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="", messages=HI)
    engine.allow(6)
    await one
    assert [choice.message.content for choice in (await five).choices] == ["1 "] * 5
    assert engine.most_running == 2
    assert server.idle


async def test_more_prompts_than_slots_have_their_turn_and_so_do_others_between_them(
    start: Any, stepper: Any, openai_of: Any
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
    one = asyncio.create_task(client.chat.completions.create(model="", messages=HI))
    await until(lambda: admission.waiting == 1)
    engine.allow(101)
    await one
    assert HI in engine.calls[2:4]
    assert [choice.text for choice in (await many).choices] == [f"{prompt}1 " for prompt in prompts]
    assert engine.most_running == 2
    assert server.idle


async def test_what_waits_for_answers_of_its_own_request_does_not_wait_in_the_queue(
    start: Any, stepper: Any, openai_of: Any
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


@pytest.mark.parametrize("end", ["left", "drained"])
async def test_of_a_large_request_nothing_goes_on_when_it_ends(
    start: Any, stepper: Any, openai_of: Any, end: str
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=2, max_queue_size=1))
    many = asyncio.create_task(openai_of(server).completions.create(model="", prompt=["a"] * 50))
    await until(lambda: engine.running == 2)
    if end == "left":
        many.cancel()
    else:
        server.chat_stream.drain()
    with pytest.raises(asyncio.CancelledError if end == "left" else openai.InternalServerError):
        await many
    await until(lambda: server.stopping)
    engine.allow(4)
    await until(lambda: server.idle)
    assert len(engine.calls) == engine.closed == 2


async def test_one_of_n_that_fails_ends_the_others(start: Any, openai_of: Any) -> None:
    left: list[str] = []

    def engine(messages: Any, params: GenerationParams) -> Iterator[str]:
        if params.seed % 2:
            raise ZeroDivisionError("the engine broke")
        try:
            while True:
                threading.Event().wait(0.001)  # an engine's step takes time
                yield "on "
        finally:
            left.append("closed")

    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=1_000_000)))
    with pytest.raises(openai.InternalServerError, match="The model failed to answer"):
        await openai_of(server).chat.completions.create(model="", messages=HI, n=2, seed=4)
    await until(lambda: server.idle)
    assert left == ["closed"]


async def test_many_prompts_of_a_completion_have_n_answers_each(start: Any, openai_of: Any) -> None:
    client = openai_of(await start(ChatStream(engine=echo, num_of_concurrent_executions=4)))
    answer = await client.completions.create(model="", prompt=["a", "b"], n=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["aa ", "aa ", "bb ", "bb "]


async def test_parameters_reach_the_engine_under_its_own_names(start: Any, openai_of: Any) -> None:
    seen: list[GenerationParams] = []

    def engine(messages: Any, params: GenerationParams) -> Iterator[str]:
        seen.append(params)
        yield "Hello"

    client = openai_of(await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=50))))
    more = {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.2, "ignore_eos": True, "no_such_field": 1, "store": True}
    await client.chat.completions.create(
        model="",
        messages=HI,
        max_completion_tokens=7,
        max_tokens=9,
        temperature=0.5,
        top_p=0.6,
        seed=11,
        stop="x",
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"5": 3},
        user="anna",
        extra_body=more,
    )
    expected = GenerationParams(
        max_new_tokens=7,
        temperature=0.5,
        top_p=0.6,
        top_k=0,
        min_p=0.1,
        seed=11,
        stop=("x",),
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.2,
        logit_bias={5: 3},
        ignore_eos=True,
    )
    assert seen == [expected]
    await client.chat.completions.create(model="", messages=HI, max_tokens=9, stop=["x", "y"])
    assert (seen[1].max_new_tokens, seen[1].stop) == (9, ("x", "y"))


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 3}, "temperature", "must be a number from 0 (greedy) to 2"),
    ({"max_tokens": 1000}, "max_tokens", "must be from 1 to 256 on this server"),
    ({"max_completion_tokens": 1000}, "max_completion_tokens", "must be from 1 to 256 on this server"),
    ({"extra_body": {"audio": {"voice": "x"}}}, "audio", "is not supported"),
    ({"stop": ""}, "stop", "must be a string, or a list of up to 16, of 1 to 128 characters each"),
    ({"functions": [{"name": "f"}]}, "functions", "is not supported"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "is not supported"),
    ({"verbosity": "low"}, "verbosity", "is not supported"),
    ({"top_logprobs": 3}, "top_logprobs", "go with logprobs=true"),
    ({"logprobs": True}, "logprobs", "not supported by this engine"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported by this engine"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "goes with type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
    ({"tool_choice": "required"}, "tool_choice", "takes tools"),
    ({"messages": []}, "messages", "1 to 2048 messages"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content",
        "'image_url' are not supported",
    ),
]


async def test_what_cannot_be_done_is_a_400_that_names_the_field(start: Any, openai_of: Any) -> None:
    server = await start(ChatStream(engine=echo))
    client = openai_of(server)
    for asked, param, says in REFUSED:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**{"model": "", "messages": HI, **asked})
        assert refused.value.param == param
        assert refused.value.type == "invalid_request_error"
        assert says in refused.value.body["message"]
    assert server.idle


async def test_each_refusal_is_the_error_that_the_client_has_for_it(start: Any, client_of: Any, openai_of: Any) -> None:
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
async def test_a_full_queue_says_when_to_come_back_and_the_client_does(
    start: Any, stepper: Any, openai_of: Any, monkeypatch: pytest.MonkeyPatch, status: int
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


async def test_a_model_that_could_not_be_loaded_is_told_at_once() -> None:
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
        ):  # tries again
            with pytest.raises(openai.InternalServerError, match="The model could not be loaded") as failed:
                await client.chat.completions.create(model="", messages=HI)
    assert failed.value.code == "starting"


async def test_raw_responses_have_the_answers_id_as_request_id_and_the_log_has_it(
    start: Any, openai_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = openai_of(await start(ChatStream(engine=echo)))
    raw = await client.chat.completions.with_raw_response.create(model="", messages=HI)
    assert raw.headers["X-Request-Id"] == raw.parse().id
    assert f"answer {raw.parse().id.removeprefix('chatcmpl-')} finished_reason=stop" in caplog.text
    assert raw.headers["Cache-Control"] == "no-store"
    async with client.chat.completions.with_streaming_response.create(model="", messages=HI, stream=True) as streamed:
        assert streamed.headers["X-Request-Id"].startswith("chatcmpl-")


async def test_a_failure_before_the_first_text_has_a_status(start: Any, openai_of: Any) -> None:
    server = await start(ChatStream(engine=fails))
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="The model failed to answer") as failed:
            await openai_of(server).chat.completions.create(model="", messages=HI, stream=stream)
        assert "history" not in failed.value.message
        assert "engine broke" not in failed.value.message
    assert server.idle


async def test_a_failure_after_it_is_an_event_that_the_client_raises(start: Any, stepper: Any, openai_of: Any) -> None:
    engine = stepper(fail_at=1)
    server = await start(ChatStream(engine=engine))
    # its type of a completion's chunk knows no open end, which all servers send
    client = openai_of(server, _strict_response_validation=False)
    engine.allow(6)
    for create, asked in (
        (client.chat.completions.create, {"messages": HI}),
        (client.completions.create, {"prompt": "hi"}),
        (client.responses.create, {"input": "hi"}),
    ):
        stream = await create(model="", stream=True, **asked)
        with pytest.raises(openai.APIError, match="The model failed to answer"):
            async for _ in stream:
                pass


async def test_who_waits_long_is_kept_awake_and_refused_by_an_event(
    start: Any, stepper: Any, client_of: Any, openai_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiochatstream.web.openai.answering.HEARTBEAT_SECONDS", 0.01)
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


async def test_a_response_is_told_in_the_events_that_the_client_gathers(start: Any, openai_of: Any) -> None:
    client = openai_of(await start(ChatStream(engine=echo)))
    whole = await client.responses.create(model="", input=[{"role": "user", "content": "a b"}], metadata={"k": "v"})
    assert (whole.output_text, whole.status, whole.store) == ("a b ", "completed", False)
    assert (whole.usage.output_tokens, whole.metadata) == (2, {"k": "v"})
    stream = await client.responses.create(model="", input="a b", max_output_tokens=1, stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"
    assert events[-1].response.output_text == "a "


async def test_a_response_that_cannot_be_made_is_a_400_that_names_the_field(start: Any, openai_of: Any) -> None:
    server = await start(ChatStream(engine=echo))
    unsupported = {"previous_response_id": "x", "tools": [{"type": "web_search"}], "background": True, "n": 2}
    unsupported["reasoning"] = {"effort": "high"}
    refused: dict[str, tuple[Any, str]] = {field: (value, "is not supp") for field, value in unsupported.items()} | {
        "max_output_tokens": (1000, "must be from 1 to 256 on this server"),
        "top_logprobs": (1, "not supported by this engine"),
        "max_tokens": (5, "is called max_output_tokens here"),  # as are other endpoints' fields
        "response_format": ({"type": "json_object"}, "is called text.format here"),
        "logprobs": (True, "is called top_logprobs here"),
        "include": ("x", "include: must be a valid array"),
    }
    for field, (value, says) in refused.items():
        with pytest.raises(openai.BadRequestError, match=says) as error:
            await openai_of(server).responses.create(model="", input="a", extra_body={field: value})
        assert error.value.param == field
    with pytest.raises(openai.BadRequestError, match=r"text\.format: not supported by this engine"):
        await openai_of(server).responses.create(model="", input="a", text={"format": {"type": "json_object"}})
    with pytest.raises(openai.BadRequestError, match=r"text\.verbosity: is not supported"):
        await openai_of(server).responses.create(model="", input="a", text={"verbosity": "low"})
    assert server.idle


async def test_an_app_of_nothing_else_needs_no_sessions() -> None:
    app = web.Application()
    ChatStream(engine=echo).setup_openai(app, "/api", model_name="parrot")
    async with serving(app) as url, AsyncOpenAI(base_url=f"{url}/api", api_key="none") as client:
        assert [model.id async for model in client.models.list()] == ["parrot"]
        assert (await client.responses.create(model="parrot", input="hi")).output_text == "hi "


async def test_the_figures_count_these_answers_too(start: Any, openai_of: Any, client_of: Any) -> None:
    server = await start(ChatStream(engine=echo, num_of_concurrent_executions=2))
    await openai_of(server).chat.completions.create(model="", messages=HI, n=2)
    async with client_of(server).session.get(f"{server.url}/metrics") as response:
        figures = await response.text()
    assert 'aiochatstream_requests_finished_total{finished_reason="stop"} 2.0' in figures
    assert "aiochatstream_generation_tokens_total 6.0" in figures
    assert len(server.chat_stream._memory) == 0
