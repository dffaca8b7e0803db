"""Chats without an application: ``handle_console_input``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aiochatstream import ChatStream, ChatStreamError, GenerationParams, Limits
from aiochatstream.errors import Draining, InvalidValue
from tests.helpers import EngineFunction, MakeStepper, echo, until

Pieces = list[tuple[str, str, str]]


async def pieces(chat_stream: ChatStream, text: str) -> Pieces:
    return [piece async for piece in chat_stream.handle_console_input(text)]


def engine_of(*texts: str) -> EngineFunction:
    def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        yield from texts

    return engine


async def test_console_pieces_are_the_whole_text_the_new_text_and_the_position() -> None:
    async with ChatStream(engine=engine_of("東京", "です", "。")) as chat_stream:
        assert await pieces(chat_stream, "日本の首都は？") == [
            ("東京", "東京", "begin"),
            ("東京です", "です", "mid"),
            ("東京です。", "。", "mid"),
            ("東京です。", "", "end"),
        ]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(["yes"], [("yes", "yes", "begin"), ("yes", "", "end")]), ([], [("", "", "begin"), ("", "", "end")])],
    ids=["one piece", "none"],
)
async def test_short_answers_have_one_begin_and_one_end(texts: list[str], expected: Pieces) -> None:
    async with ChatStream(engine=engine_of(*texts)) as chat_stream:
        assert await pieces(chat_stream, "Hello") == expected


async def test_each_chat_stream_continues_its_own_console_conversation() -> None:
    prompts: list[list[str]] = []

    def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        prompts.append([message["content"] for message in messages])
        yield "ok"

    async with ChatStream(engine=engine) as first, ChatStream(engine=engine) as second:
        await pieces(first, "one")
        await pieces(first, "two")
        await pieces(second, "three")
    assert prompts == [["one"], ["one", "ok", "two"], ["three"]]


async def test_closing_the_generator_stops_the_engine_and_saves_the_text_so_far(
    stepper: MakeStepper,
) -> None:
    engine = stepper()
    async with ChatStream(engine=engine, params=GenerationParams(max_new_tokens=4)) as chat_stream:
        async with aclosing(chat_stream.handle_console_input("Count")) as answer:
            engine.allow(1)
            assert await anext(answer) == ("1 ", "1 ", "begin")
            engine.allow(1)  # the running step
        await until(lambda: engine.closed == 1)
        engine.allow(4)
        await pieces(chat_stream, "Again")
        user, interrupted, _ = engine.calls[-1]
        assert (user["content"], interrupted["role"]) == ("Count", "assistant")
        assert interrupted["content"] in ("1 ", "1 2 ")


async def test_failures_are_chat_stream_errors_and_lose_no_text(
    stepper: MakeStepper,
) -> None:
    engine = stepper(fail_at=1)
    async with ChatStream(engine=engine) as chat_stream:
        engine.allow(2)
        with pytest.raises(ChatStreamError, match="The model failed to answer"):
            await pieces(chat_stream, "Count")
        for empty in ("", "  \n"):
            with pytest.raises(InvalidValue, match="text: must be a non-empty string"):
                await pieces(chat_stream, empty)
        engine.fail_at = 0
        engine.allow(1)
        with pytest.raises(ChatStreamError):
            await pieces(chat_stream, "Again")
        assert [message["content"] for message in engine.calls[-1]] == ["Count", "1 ", "Again"]


async def test_console_input_outside_async_with_is_an_error() -> None:
    chat_stream = ChatStream(engine=echo)
    with pytest.raises(RuntimeError, match="async with chat_stream"):
        await pieces(chat_stream, "Hello")
    async with chat_stream:
        assert (await pieces(chat_stream, "Hello"))[-1] == ("Hello ", "", "end")
    with pytest.raises(Draining):
        await pieces(chat_stream, "Hello")


async def test_console_input_waits_until_the_model_is_loaded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    def load_model() -> PreTrainedModel:
        return model

    chat_stream = ChatStream(
        model=load_model,
        tokenizer=tokenizer,
        params=GenerationParams(temperature=0, max_new_tokens=4),
        limits=Limits(context_len=128),
    )
    async with chat_stream:
        assert chat_stream.state == "starting"
        answer = await pieces(chat_stream, "What is the capital of France?")
    assert [piece[2] for piece in answer].count("begin") == [piece[2] for piece in answer].count("end") == 1
    assert answer[-1][0] == "".join(piece[1] for piece in answer) != ""


async def test_the_locale_selects_the_language_of_log_lines(
    stepper: MakeStepper, caplog: pytest.LogCaptureFixture
) -> None:
    engine = stepper()
    async with ChatStream(engine=engine, limits=Limits(shutdown_timeout=0.01), locale="ja") as chat_stream:
        answer = chat_stream.handle_console_input("Count")
        engine.allow(1)
        await anext(answer)
        engine.allow(100)
    assert "1 件の応答を停止します" in caplog.text
    await answer.aclose()


def test_an_unknown_locale_is_refused() -> None:
    with pytest.raises(ValueError, match="locale: must be 'en' or 'ja', not 'fr'"):
        ChatStream(engine=echo, locale="fr")  # type: ignore[arg-type]
