"""Values that depend on the model: its own parameters and the lengths that its context allows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from aiochatstream import ChatStream, Delta, Engine, GenerationParams, Limits, ParamLimits, Prompt
from aiochatstream.errors import ContextLengthExceeded, InvalidValue, TooLarge
from aiochatstream.params import ParamOverrides
from aiochatstream.prompts import TextInput
from aiochatstream.runtime.turn_request import TurnRequest

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
        **limits: Any,
    ) -> AsyncIterator[tuple[ChatStream, SilentEngine]]:
        engine = SilentEngine(tokenizer if has_tokenizer else None, limit, model_params)
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
