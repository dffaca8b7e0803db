"""Arguments of chat templates: levels of thinking, the server's own values, and models without a template."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from transformers import PreTrainedModel

from aiochatstream import ChatStream, GenerationParams, ParamLimits
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.prompts import CompletionsOnly
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import Client, ClientOf, StartServer, echo, role_of
from tests.prompts.builders import HumanAndBot
from tests.prompts.templates import GPT_OSS, QWEN, with_template

PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"

ALL = {"user": role_of("nothing")}
"""Roles that allow all endpoints: by default, browsers may not read prompts."""

MakeChatStream = Callable[..., ChatStream]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny()


@pytest.fixture
def make(model: PreTrainedModel) -> MakeChatStream:
    def make_chat_stream(template: str | None, *, params: dict[str, Any] | None = None, **options: Any) -> ChatStream:
        tokenizer = BYTES if template is None else with_template(template, BYTES)
        short: dict[str, Any] = {"max_new_tokens": 2, "temperature": 0.0, **(params or {})}
        return ChatStream(
            engine=TransformersEngine(model, tokenizer, optimize=False),
            params=GenerationParams(**short),
            client_roles=ALL,
            **options,
        )

    return make_chat_stream


async def prompt_of(client: Client) -> str:
    async with client.session.get(f"{client.url}/get_prompt") as response:
        return unquote((await response.json())["prompt"])


@pytest.mark.parametrize(
    ("template", "allowed", "levels"),
    [
        (QWEN, None, ("auto", "off", "high")),
        (QWEN, ("auto", "off", "low"), ("auto", "off", "low")),
        (GPT_OSS, None, ("auto", "low", "medium", "high")),
        (GPT_OSS, ("auto", "off", "high"), ("auto", "high")),
        (PLAIN, None, ()),
    ],
    ids=["Qwen3", "Qwen3, limited", "gpt-oss", "gpt-oss, limited", "none"],
)
async def test_the_levels_are_those_of_the_template_and_the_server(
    make: MakeChatStream, template: str, allowed: tuple[Any, ...] | None, levels: tuple[str, ...]
) -> None:
    chat_stream = make(template, param_limits=ParamLimits(thinking=allowed))
    assert chat_stream.thinking_levels == ()
    async with chat_stream:
        await chat_stream.wait_ready()
        assert chat_stream.thinking_levels == levels


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"params": {"thinking": "off"}}, "thinking: must be 'auto' with this model, whose prompts have no switch"),
        ({"params": {"chat_template_kwargs": {"x": 1}}}, "chat_template_kwargs.x: unknown variable; the model's chat"),
        (
            {"params": {"chat_template_kwargs": {"x": 1}}, "chat_prompt_clazz": HumanAndBot},
            "chat_template_kwargs.x: unknown variable; the model's chat template accepts no variables.",
        ),
    ],
)
async def test_the_servers_own_arguments_are_checked_at_startup(
    make: MakeChatStream, options: dict[str, Any], sentence: str
) -> None:
    chat_stream = make(PLAIN, **options)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        async with chat_stream:
            await chat_stream.wait_ready()


async def test_levels_and_variables_of_user_and_request_are_in_the_prompt(
    make: MakeChatStream, start: StartServer, client_of: ClientOf
) -> None:
    params = {"thinking": "off", "chat_template_kwargs": {"language": "French"}}
    client = client_of(await start(make(QWEN, params=params)))
    counts = {}
    for name, override in {
        "server": {},
        "on": {"thinking": "high"},
        "variable": {"chat_template_kwargs": {"enable_thinking": True}},
        "longer": {"chat_template_kwargs": {"language": "Japanese"}},
    }.items():
        await client.post("/clear_context")
        counts[name] = (await client.say("Hello", params=override))["usage"]["prompt_tokens"]
    assert counts["server"] - counts["on"] == len("<think>\n\n</think>\n\n")
    assert counts["variable"] == counts["on"]
    assert counts["longer"] - counts["server"] == len("Japanese") - len("French")
    prompt = (
        "<|im_start|>system\nAnswer in French.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert await prompt_of(client) == f"{prompt}<think>\n\n</think>\n\n"
    await client.post("/set_generation_params", thinking="low", chat_template_kwargs={"language": "Thai"})
    assert await prompt_of(client) == prompt.replace("French", "Thai")
    assert (await client.say("Hello"))["usage"]["prompt_tokens"] > counts["on"]


async def test_requests_with_unknown_levels_or_variables_are_refused(
    make: MakeChatStream, start: StartServer, client_of: ClientOf
) -> None:
    client = client_of(await start(make(GPT_OSS)))
    for params, sentence in (
        ({"thinking": "off"}, "params.thinking: must be 'auto', 'low', 'medium' or 'high' with this model."),
        ({"chat_template_kwargs": {"tools": []}}, "params.chat_template_kwargs.tools: unknown variable"),
        ({"chat_template_kwargs": [1]}, "params.chat_template_kwargs: must be an object of up to 32 variables"),
    ):
        async with client.post("/chat_stream", user_input="Hello", params=params) as response:
            assert response.status == 422
            assert (await response.json())["detail"].startswith(sentence)


async def test_an_engine_without_a_tokenizer_receives_all_arguments(start: StartServer, client_of: ClientOf) -> None:
    received = []

    def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        received.append((params.thinking, params.chat_template_kwargs))
        yield "Hello"

    chat_stream = ChatStream(engine=engine, params=GenerationParams(thinking="low"))
    client = client_of(await start(chat_stream))
    await client.say("Hello", params={"chat_template_kwargs": {"x": 1}})
    assert received == [("low", {"x": 1})]
    assert chat_stream.thinking_levels == ()


async def test_the_servers_prefix_contains_its_own_arguments(
    make: MakeChatStream, start: StartServer, client_of: ClientOf
) -> None:
    server = await start(make(QWEN, params={"chat_template_kwargs": {"language": "a language of many words"}}))
    head = len("<|im_start|>system\nAnswer in a language of many words.<|im_end|>\n<|im_start|>user\n")

    async def cached(**params: Any) -> int:
        tokens: int = (await client_of(server).say("Some text", params=params))["usage"]["cached_tokens"]
        return tokens

    assert await cached() == head
    assert await cached(thinking="off") == head
    assert await cached(chat_template_kwargs={"language": "a language of many guesses"}) == 0


async def test_a_model_without_a_template_completes_texts_and_refuses_chats(
    make: MakeChatStream, start: StartServer, client_of: ClientOf
) -> None:
    chat_stream = make(None, chat_prompt_clazz=lambda tokenizer: CompletionsOnly)
    server = await start(chat_stream)
    assert not chat_stream.chats
    client = client_of(server)
    async with client.post("/chat_stream", user_input="Hello") as response:
        body = await response.json()
        assert (response.status, body["error"]) == (400, "bad_request")
        assert body["detail"].startswith("This model has no chat template: only /v1/completions is available")
    hello = {"role": "user", "content": "Hello"}
    for path, fields in (("chat/completions", {"messages": [hello]}), ("responses", {"input": "Hello"})):
        async with client.post(f"/v1/{path}", **fields) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (400, "bad_request")
            assert "--prompt NAME or --chat-template FILE" in error["message"]
    async with client.post("/v1/completions", prompt="Hello", max_tokens=2) as response:
        assert response.status == 200
        assert (await response.json())["usage"]["completion_tokens"] == 2
    assert server.idle


async def test_other_models_chat(make: MakeChatStream) -> None:
    for chat_stream in (ChatStream(engine=echo), make(QWEN), make(None, chat_prompt_clazz=HumanAndBot)):
        async with chat_stream:
            await chat_stream.wait_ready()
            assert chat_stream.chats
