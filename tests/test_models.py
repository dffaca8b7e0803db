"""Several models behind one OpenAI API."""

from __future__ import annotations

import asyncio
import platform
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import aiohttp_session
import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from aiochatstream import ChatStream, GenerationParams, Limits, MemoryStorage, Models
from aiochatstream.prompts.presets.base_model import ChatPromptCyberAgentOpenCalm
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import PATIENCE, DeltaEngine, Stepper, browser, echo, serving, until
from tests.web.openai.helpers import HI, SpyEngine

platform.processor()  # OpenAI's client calls it, and the first call starts a program

KEY = "a-key-of-thirty-characters----"


@asynccontextmanager
async def served(models: Models, app: web.Application | None = None, **options: Any) -> AsyncIterator[AsyncOpenAI]:
    """Serve ``models``, and yield a client of OpenAI's."""
    app = web.Application() if app is None else app
    models.setup_openai(app, **options)
    async with (
        serving(app) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield client


def tiny_chat_stream(model: Any = tiny, **options: Any) -> ChatStream:
    """Return a ChatStream with a tiny model, or with a function that loads it."""
    params = GenerationParams(max_new_tokens=8)
    model = model() if model is tiny else model
    return ChatStream(
        model=model, tokenizer=BYTES, chat_prompt_clazz=ChatPromptCyberAgentOpenCalm, params=params, **options
    )


def two(default: str | None = None) -> Models:
    small, big = ChatStream(engine=SpyEngine("small")), ChatStream(engine=SpyEngine("big"))
    return Models({"small": small, "org/big": big}, default=default)


async def answer(client: AsyncOpenAI, model: str) -> str:
    completion = await client.chat.completions.create(model=model, messages=HI)
    assert completion.model == (model or "org/big")
    return completion.choices[0].message.content or ""


async def test_the_name_in_the_request_chooses_the_model() -> None:
    async with served(two("org/big")) as client:
        assert [await answer(client, name) for name in ("small", "org/big", "")] == ["small", "big", "big"]
        stream = await client.chat.completions.create(model="small", messages=HI, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "small"
        assert {chunk.model for chunk in chunks} == {"small"}
        assert (await client.completions.create(model="org/big", prompt="x")).choices[0].text == "big"
        assert (await client.responses.create(model="small", input="x")).output_text == "small"
        for create in (
            client.chat.completions.create(model="other", messages=HI),
            client.completions.create(model="other", prompt="x"),
            client.responses.create(model="other", input="x"),
            client.models.retrieve("other"),
        ):
            with pytest.raises(openai.NotFoundError, match="must be 'small' or 'org/big', not 'other'") as refused:
                await create
            assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


async def test_without_a_default_a_request_must_name_its_model() -> None:
    async with served(two()) as client:
        with pytest.raises(openai.BadRequestError, match="model: must be 'small' or 'org/big'"):
            await answer(client, "")
    async with served(Models({"org/big": ChatStream(engine=SpyEngine("alone"))})) as client:
        assert await answer(client, "") == "alone"


async def test_the_list_contains_all_models_with_their_own_limits() -> None:
    def chat_stream(context_len: int) -> ChatStream:
        return tiny_chat_stream(limits=Limits(context_len=context_len))

    async with served(Models({"a": chat_stream(64), "b/c": chat_stream(96)})) as client:
        models = (await client.models.list()).data
        lengths = {model.id: model.to_dict()["max_model_len"] for model in models}
        assert lengths == {"a": 64, "b/c": 96}
        assert {model.owned_by for model in models} == {"aiochatstream"}
        assert await client.models.retrieve("b/c") == models[1]
        base = str(client.base_url).removesuffix("/v1/")
        for name, length in lengths.items():
            async with aiohttp.request("POST", f"{base}/tokenize", json={"model": name, "prompt": "abc"}) as response:
                ids = BYTES("abc")["input_ids"]
                assert await response.json() == {"count": len(ids), "max_model_len": length, "tokens": ids}


async def test_each_model_has_its_own_slots_and_queue() -> None:
    stepper = Stepper()
    full = ChatStream(engine=stepper, num_of_concurrent_executions=1, max_queue_size=0)
    free = ChatStream(engine=echo)
    async with served(Models({"full": full, "free": free})) as client:
        running = asyncio.create_task(client.completions.create(model="full", prompt="x", max_tokens=2))
        await until(lambda: full.admission.running)
        with pytest.raises(openai.InternalServerError) as refused:
            await client.completions.create(model="full", prompt="x")
        assert (refused.value.status_code, refused.value.code) == (503, "too_many_requests")
        assert await answer(client, "free") == "one two three "
        assert 'refused_total{reason="too_many_requests"} 1' in full.metrics.render().decode()
        assert 'refused_total{reason="too_many_requests"} 1' not in free.metrics.render().decode()
        stepper.allow(2)
        assert (await running).choices[0].text == "1 2 "


async def test_a_model_that_is_not_ready_refuses_only_its_own_requests() -> None:
    loaded = threading.Event()

    def load() -> Any:
        assert loaded.wait(PATIENCE)
        return tiny()

    slow = tiny_chat_stream(load)
    app = web.Application()
    async with served(Models({"slow": slow, "quick": ChatStream(engine=echo)}), app) as client:
        health = str(client.base_url).replace("/v1/", "/health")
        assert await answer(client, "quick") == "one two three "
        assert [model.id for model in (await client.models.list()).data] == ["quick"]
        for request in (client.completions.create(model="slow", prompt="x"), client.models.retrieve("slow")):
            with pytest.raises(openai.InternalServerError) as refused:
                await request
            assert (refused.value.status_code, refused.value.code) == (503, "starting")
        async with aiohttp.request("GET", health) as response:
            assert (response.status, await response.json()) == (200, {"status": "ready"})
        loaded.set()
        await slow.wait_ready()
        assert [model.id for model in (await client.models.list()).data] == ["slow", "quick"]


async def test_health_without_a_ready_model_is_the_error_of_the_first() -> None:
    loaded = threading.Event()

    def load() -> Any:
        assert loaded.wait(PATIENCE)
        return tiny()

    slow = tiny_chat_stream(load)
    async with served(Models({"slow": slow})) as client:
        health = str(client.base_url).replace("/v1/", "/health")
        try:
            async with aiohttp.request("GET", health) as response:
                body = await response.json()
            assert (response.status, body["error"], response.headers["Retry-After"]) == (503, "starting", "5")
            with pytest.raises(openai.InternalServerError, match="The model is loading"):
                await client.models.list()
        finally:
            loaded.set()
            await slow.wait_ready()


async def test_keys_apply_to_all_models() -> None:
    async with served(two("small"), api_keys=[KEY]) as client:
        assert await answer(client, "small") == "small"
        stranger = client.with_options(api_key="wrong")
        for name in ("small", "org/big", "other"):
            with pytest.raises(openai.AuthenticationError):
                await answer(stranger, name)


async def test_a_page_of_an_allowed_origin_uses_all_models() -> None:
    origin = "https://app.example"
    first = ChatStream(engine=echo, allowed_origins=[origin])
    async with served(Models({"first": first, "second": ChatStream(engine=echo)})) as client:
        headers, foreign = {"Origin": origin}, {"Origin": "https://x.example"}
        url, body = f"{client.base_url}chat/completions", {"model": "second", "messages": HI}
        async with aiohttp.request("POST", url, json=body, headers=headers) as response:
            assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, origin)
        async with aiohttp.request("POST", url, json=body, headers=foreign) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "forbidden")


async def test_models_may_have_other_endpoints_in_the_same_application() -> None:
    first, second = ChatStream(engine=echo), ChatStream(engine=SpyEngine("second"))
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    first.add_endpoints(app)
    async with served(Models({"first": first, "second": second}), app) as client:
        async with browser(str(client.base_url).removesuffix("/v1/")) as user:
            assert (await user.say("Hello"))["text"] == "Hello "
        assert await answer(client, "second") == "second"


@pytest.mark.parametrize("has_page", [False, True])
async def test_all_models_drain_together_and_end_their_answers(has_page: bool) -> None:
    """The shutdown of the first one does not cut the answers of the others."""
    steppers = {name: Stepper() for name in ("first", "second", "third")}
    chat_streams = {name: ChatStream(engine=stepper) for name, stepper in steppers.items()}
    models = Models(chat_streams)
    app = web.Application()
    if has_page:
        aiohttp_session.setup(app, MemoryStorage())
        chat_streams["first"].add_endpoints(app)
    models.setup_openai(app)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        requests = {
            name: asyncio.create_task(client.completions.create(model=name, prompt="x", max_tokens=2))
            for name in steppers
        }
        await until(lambda: all(stepper.running for stepper in steppers.values()))
        shutdown = asyncio.create_task(runner.cleanup())
        await until(lambda: all(chat_stream.state == "draining" for chat_stream in chat_streams.values()))
        for name in ("first", "second", "third"):
            steppers[name].allow(2)
            assert (await requests[name]).choices[0].text == "1 2 "
        await shutdown
    assert [chat_stream.running_turns for chat_stream in chat_streams.values()] == [[], [], []]


@pytest.mark.parametrize(
    ("chat_streams", "default", "error", "message"),
    [
        ([], None, TypeError, "chat_streams: must be a mapping"),
        ({}, None, ValueError, "chat_streams: must contain at least one"),
        ({"": ChatStream(engine=echo)}, None, ValueError, "chat_streams: names must be non-empty strings, not ''"),
        ({"a": DeltaEngine()}, None, TypeError, "chat_streams: 'a' must be a ChatStream"),
        ({"a": ChatStream(engine=echo)}, "b", ValueError, "default: must be 'a', not 'b'"),
    ],
)
def test_invalid_arguments(chat_streams: Any, default: str | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Models(chat_streams, default=default)


def test_two_apis_cannot_share_a_prefix() -> None:
    app = web.Application()
    two().setup_openai(app)
    with pytest.raises(ValueError, match="prefix: must differ"):
        two().setup_openai(app)
