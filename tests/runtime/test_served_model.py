"""Values that depend on the model: arguments of its chat template, its own parameters, and lengths."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import unquote

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aiochatstream import ChatStream, Delta, Engine, GenerationParams, Limits, ParamLimits, Prompt
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.errors import ContextLengthExceeded, InvalidValue, TooLarge
from aiochatstream.params import ParamOverrides
from aiochatstream.prompts import CompletionsOnly, TextInput
from aiochatstream.runtime.turn_request import TurnRequest
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
            **{"allow_system_prompt": True, **options},
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


MODEL_PARAMS = {"temperature": 0.6, "top_k": 20, "max_new_tokens": 7}


class SilentEngine(Engine):
    """Records the lengths of prompts and answers, and answers with a single token."""

    def __init__(self, tokenizer: Any, limit: int | None, default_params: Mapping[str, Any]) -> None:
        self._loaded = tokenizer, limit, default_params
        self.loads: list[int | None] = []
        self.lengths: list[tuple[int, int]] = []
        """Tokens of each prompt, and the maximum for its answer."""

    def load(self, slots: int, context_len: int | None) -> None:
        self.loads.append(context_len)
        self.tokenizer, self.max_context_len, self.default_params = self._loaded

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        self.lengths.append((len(prompt.token_ids), params.max_new_tokens))
        yield Delta("ok", (1,), "stop")


Serve = Callable[..., AbstractAsyncContextManager[tuple[ChatStream, SilentEngine]]]


@pytest.fixture
def serve(tokenizer: PreTrainedTokenizerBase) -> Serve:
    @asynccontextmanager
    async def serve(
        limit: int | None = 1000,
        model_params: Mapping[str, Any] = MODEL_PARAMS,
        *,
        params: GenerationParams | None = None,
        has_tokenizer: bool = True,
        param_limits: ParamLimits | None = None,
        kv_cache_tokens: int | None = None,
        **limits: Any,
    ) -> AsyncIterator[tuple[ChatStream, SilentEngine]]:
        engine = SilentEngine(tokenizer if has_tokenizer else None, limit, model_params)
        engine.kv_cache_tokens = kv_cache_tokens
        async with ChatStream(
            engine=engine, params=params, param_limits=param_limits, limits=Limits(**limits)
        ) as chat_stream:
            yield chat_stream, engine

    return serve


async def say(chat_stream: ChatStream, text: str, **params: Any) -> None:
    """Have a turn of the chat without an application."""
    user = chat_stream._console_user
    turn = await chat_stream.begin_turn(user, "main", TurnRequest(text), ParamOverrides(**params))
    await turn.wait_ended()


async def complete(chat_stream: ChatStream, text: str, **params: Any) -> None:
    for turn in await chat_stream.begin_answers(TextInput([text]), ParamOverrides(**params), owner=""):
        await turn.wait_ended()


# The model's own parameters


async def test_the_models_parameters_replace_defaults_only(serve: Serve) -> None:
    async with serve(params=GenerationParams(top_k=5)) as (chat_stream, _):
        params = chat_stream.params
        assert (params.temperature, params.top_k, params.top_p, params.max_new_tokens) == (0.6, 5, 1.0, 256)
        assert chat_stream.override(ParamOverrides(temperature=1.5)).temperature == 1.5
        user = ParamOverrides(top_p=0.5)
        sources = {name: chat_stream.source_of(name, user) for name in ("temperature", "top_k", "top_p", "min_p")}
        assert sources == {"temperature": "model", "top_k": "app", "top_p": "user", "min_p": "default"}
        assert chat_stream.source_of("max_new_tokens", user) == "default"


async def test_each_start_begins_with_the_applications_parameters(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = SilentEngine(tokenizer, 1000, MODEL_PARAMS)
    chat_stream = ChatStream(engine=engine)
    assert chat_stream.params == GenerationParams()
    for model_params in (MODEL_PARAMS, {"top_p": 0.9}):
        engine._loaded = tokenizer, 1000, model_params
        async with chat_stream:
            expected: dict[str, Any] = {name: value for name, value in model_params.items() if name != "max_new_tokens"}
            assert chat_stream.params == GenerationParams(**expected)


async def test_the_models_values_are_clamped_to_the_servers_limits(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(param_limits=ParamLimits(temperature=(0.8, 1.2))) as (chat_stream, _):
        assert chat_stream.params.temperature == 0.8
        assert "Using temperature=0.8 instead of 0.6" in caplog.text
        with pytest.raises(InvalidValue, match=r"^params\.temperature: must be from 0\.8 to 1\.2 on this server\.$"):
            chat_stream.override(ParamOverrides(temperature=0.6))


# Lengths


@pytest.mark.parametrize(
    ("limit", "context_len", "requested", "expected"),
    [
        (8192, None, 2048, 2048),
        (1000, None, 2048, 1000),
        (None, None, 2048, 2048),
        (8192, 4096, 4096, 4096),
        (8192, "max", None, 8192),
        (None, "max", None, 2048),
    ],
)
async def test_the_context_is_the_models_as_far_as_the_limits_allow(
    serve: Serve, limit: int | None, context_len: Any, requested: int | None, expected: int
) -> None:
    async with serve(limit, context_len=context_len) as (chat_stream, engine):
        assert engine.loads == [requested]
        assert chat_stream.context_len == expected


async def test_a_context_above_the_models_is_refused(serve: Serve) -> None:
    with pytest.raises(ValueError, match=r"^context_len: must be at most 1000 with this model, not 1001\.$"):
        async with serve(1000, context_len=1001):
            pass


async def test_an_answer_as_long_as_the_models_context_is_refused(serve: Serve) -> None:
    with pytest.raises(ValueError, match=r"^max_new_tokens: must be below context_len \(1000\) with this model\.$"):
        async with serve(1000, params=GenerationParams(max_new_tokens=1000), context_len="max"):
            pass


async def test_answers_fill_the_context_and_leave_three_quarters_for_the_history(serve: Serve) -> None:
    async with serve(400, fill_context=True) as (chat_stream, engine):
        assert chat_stream.params.max_new_tokens == 399
        for turn in range(8):
            await say(chat_stream, f"This is message number {turn}, with some more words than it needs. " * 3)
        prompts = [prompt for prompt, _ in engine.lengths]
        assert all(prompt + answer == 400 for prompt, answer in engine.lengths)
        assert max(prompts) <= 300 < prompts[1] - prompts[0] + max(prompts), "the history is as long as it can be"
        with pytest.raises(TooLarge, match=r"With 100 tokens for the answer, 300 of the 400 tokens of the context"):
            await say(chat_stream, "word " * 320)
        await say(chat_stream, "word " * 320, max_new_tokens=8)
        assert engine.lengths[-1][1] == 8
        with pytest.raises(InvalidValue, match=r"^params\.max_new_tokens: must be from 1 to 399 on this server\.$"):
            await say(chat_stream, "Hello", max_new_tokens=400)


async def test_answers_of_unset_length_leave_memory_for_other_answers(serve: Serve) -> None:
    async with serve(10_000, fill_context=True, context_len="max", kv_cache_tokens=12_000) as (chat_stream, engine):
        await say(chat_stream, "Hello")
        assert engine.lengths[-1][1] == 6000, "an equal share for each of two slots"
        await say(chat_stream, "Hello", max_new_tokens=9000)
        assert engine.lengths[-1][1] == 9000
    async with serve(10_000, fill_context=True, context_len="max", kv_cache_tokens=3000) as (chat_stream, engine):
        await say(chat_stream, "Hello")
        assert engine.lengths[-1][1] == 2048
    async with serve(400, fill_context=True, kv_cache_tokens=3000) as (chat_stream, engine):
        await say(chat_stream, "Hello")
        assert sum(engine.lengths[-1]) == 400


async def test_a_servers_own_maximum_is_reserved_for_each_answer(serve: Serve) -> None:
    async with serve(400, params=GenerationParams(max_new_tokens=300)) as (chat_stream, engine):
        await say(chat_stream, "Hello")
        assert engine.lengths[-1][1] == 300
        with pytest.raises(TooLarge, match=r"With 300 tokens for the answer, 100 of the 400 tokens of the context"):
            await say(chat_stream, "word " * 120)


async def test_without_a_tokenizer_the_context_limits_nothing(serve: Serve) -> None:
    async with serve(None, has_tokenizer=False, context_len="max", fill_context=True) as (chat_stream, engine):
        assert chat_stream.params.max_new_tokens == 256
        await say(chat_stream, "Hello")
        assert engine.lengths == [(0, 256)]


async def test_filling_the_context_excludes_a_maximum_length() -> None:
    with pytest.raises(ValueError, match=r"^fill_context: must be False if params specifies max_new_tokens\.$"):
        ChatStream(
            engine=SilentEngine(None, None, {}),
            params=GenerationParams(max_new_tokens=256),
            limits=Limits(fill_context=True),
        )


async def test_longer_stateless_answers_are_shortened_unless_the_server_is_strict(serve: Serve) -> None:
    async with serve(400, params=GenerationParams(max_new_tokens=100)) as (chat_stream, engine):
        for words, length in ((3, 1000), (3, None), (3, 7), (370, 100)):
            await complete(chat_stream, "word " * words, max_new_tokens=length)
        assert [answer for _, answer in engine.lengths[:-1]] == [100, 100, 7]
        assert 1 < engine.lengths[-1][1] < 100
        assert sum(engine.lengths[-1]) == 400
        with pytest.raises(ContextLengthExceeded, match=r"the answer needs at least 1\.$"):
            await complete(chat_stream, "word " * 420, max_new_tokens=5)
    async with serve(400, params=GenerationParams(max_new_tokens=100), strict_max_tokens=True) as (chat_stream, engine):
        with pytest.raises(InvalidValue, match=r"^max_new_tokens: must be from 1 to 100 on this server\.$"):
            await complete(chat_stream, "Hello", max_new_tokens=101)
        with pytest.raises(ContextLengthExceeded, match=r"the answer needs 100\.$"):
            await complete(chat_stream, "word " * 370, max_new_tokens=100)
        await complete(chat_stream, "word " * 370)
        assert sum(engine.lengths[-1]) == 400
