"""Tests of the load, the queue positions, the memory and the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any
from urllib.parse import quote, unquote

import psutil
from transformers import PreTrainedTokenizerBase

from aiochatstream import ChatStream, Delta, Engine, GenerationParams, Limits, Prompt
from tests.helpers import Client, ClientOf, MakeStepper, StartServer, echo, role_of, until
from tests.small_engine import SmallEngine

ALL = {"user": role_of("nothing")}
"""Roles that allow all endpoints. By default, browsers may not read prompts and the machine's memory."""

GIB = 1 << 30


async def get(client: Client, path: str, **query: str) -> dict[str, Any]:
    async with client.session.get(client.url + path, params=query) as response:
        assert response.status == 200, await response.text()
        data: dict[str, Any] = await response.json()
        return data


async def test_get_load_returns_the_queue_positions_of_the_user(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(
            engine=engine, num_of_concurrent_executions=1, max_queue_size=3, params=GenerationParams(max_new_tokens=1)
        )
    )
    first, second, stranger = client_of(server), client_of(server), client_of(server)
    for client in (first, second):
        engine.allow(1)
        await client.say("so that there is a session")
    requests = []
    for client, conversation in ((first, "a"), (second, "b"), (first, "c")):
        requests.append(asyncio.create_task(client.say("hi", conversation=conversation)))
        await until(
            lambda: server.chat_stream.admission.running + server.chat_stream.admission.waiting == len(requests)
        )
    assert (await get(first, "/get_load"))["queue_positions"] == {"c": 2}
    assert (await get(second, "/get_load"))["queue_positions"] == {"b": 1}
    load = await get(stranger, "/get_load")
    assert load["queue_positions"] == {}
    assert load["chatstream_workers"] == [
        {
            "name": "node:0",
            "processing": 1,
            "waiting": 2,
            "_num_of_next_queue": 1,
            "_num_of_request_queue": 2,
            "max_processing": 1,
            "max_waiting": 3,
        }
    ]
    engine.allow(3)
    await asyncio.gather(*requests)


async def test_resource_usage_is_in_gib(start: StartServer, client_of: ClientOf) -> None:
    usage = await get(
        client_of(await start(ChatStream(client_roles=ALL, engine=echo, name="node:7"))), "/get_resource_usage"
    )
    (worker,) = usage["memory_usage"]
    assert (worker["name"], worker["num_gpus"], worker["gpus"]) == ("node:7", 0, [])
    total = psutil.virtual_memory().total / GIB
    assert worker["cpu"]["total_memory"] == round(total, 2)
    assert 0 < worker["cpu"]["used_memory"] < total


class TwoGpus(Engine):
    def gpu_memory(self) -> list[tuple[int, int, int]]:
        return [(0, 8 * GIB, 3 * GIB), (1, 8 * GIB, GIB // 8)]

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        yield Delta("hi", (1,), "stop")


async def test_the_memory_of_all_gpus_is_reported(start: StartServer, client_of: ClientOf) -> None:
    usage = await get(client_of(await start(ChatStream(client_roles=ALL, engine=TwoGpus()))), "/get_resource_usage")
    (worker,) = usage["memory_usage"]
    assert worker["num_gpus"] == 2
    assert worker["gpus"] == [
        {"index": 0, "total_memory": 8.0, "used_memory": 3.0},
        {"index": 1, "total_memory": 8.0, "used_memory": 0.12},
    ]


async def test_get_prompt_returns_the_prompt_of_the_model(
    start: StartServer, client_of: ClientOf, small_engine: SmallEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    client = client_of(
        await start(ChatStream(client_roles=ALL, engine=small_engine, params=GenerationParams(max_new_tokens=4)))
    )
    assert await get(client, "/get_prompt") == {"success": False, "message": "no prompt", "prompt": None}
    await client.say("one & two, 三")
    body = await get(client, "/get_prompt")
    messages = [{"role": "user", "content": "one & two, 三"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert (body["success"], body["message"]) == (True, "success")
    assert body["prompt"] == quote(prompt)
    assert unquote(body["prompt"]) == prompt


async def test_the_prompt_of_an_engine_without_a_tokenizer_is_its_messages(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(ChatStream(client_roles=ALL, engine=engine, params=GenerationParams(max_new_tokens=1)))
    client = client_of(server)
    engine.allow(1)
    await client.say("first")
    running = asyncio.create_task(client.say("second"))
    await until(lambda: len(engine.calls) == 2)
    prompt = unquote((await get(client, "/get_prompt"))["prompt"])
    assert prompt == (
        '[{"role": "user", "content": "first"}, {"role": "assistant", "content": "1 "}, '
        '{"role": "user", "content": "second"}]'
    )
    engine.allow(1)
    await running
    assert unquote((await get(client, "/get_prompt"))["prompt"]) == prompt


async def test_the_prompt_is_available_for_a_message_that_nearly_fills_the_context(
    start: StartServer, client_of: ClientOf, small_engine: SmallEngine
) -> None:
    client = client_of(
        await start(
            ChatStream(
                client_roles=ALL,
                engine=small_engine,
                limits=Limits(context_len=128),
                params=GenerationParams(max_new_tokens=64),
            )
        )
    )
    words = "many " * 60
    answer = await client.say(words, params={"max_new_tokens": 2})
    assert words in unquote((await get(client, "/get_prompt"))["prompt"])
    async with client.post("/set_feedback", message_id=answer["message_id"], is_like=True) as response:
        assert response.status == 200
