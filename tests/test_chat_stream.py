"""Construction: what is wrong is told at once, with the name and the range."""

from __future__ import annotations

import asyncio
import copy
import logging
import subprocess
import sys
from typing import Any

import pytest

import aiochatstream
from aiochatstream import (
    AbstractChatPrompt,
    ChatPrompt,
    ChatStream,
    MemoryConversationStore,
    ScriptedEngine,
    prompts,
)
from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.user import User
from aiochatstream.runtime.turn_request import TurnRequest
from tests.helpers import echo, until


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_of_concurrent_executions": 0}, "num_of_concurrent_executions: must be a whole number from 1 to 1024"),
        ({"num_of_concurrent_executions": 2.5}, "num_of_concurrent_executions"),
        ({"num_of_concurrent_executions": True}, "num_of_concurrent_executions"),
        ({"max_queue_size": -1}, "max_queue_size: must be a whole number from 0 to 100000"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"context_len": 15}, "context_len"),
        ({"context_len": 256, "max_new_tokens": 256}, r"context_len: must be above max_new_tokens \(256\)"),
        ({"temperature": -0.1}, "temperature: must be a number from 0"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": 1001}, "top_k"),
        ({"top_p": 1.01}, "top_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        (
            {"repetition_penalty_method": "other"},
            "repetition_penalty_method: must be 'multiplicative' or 'subtractive'",
        ),
        ({"min_p": 1.1}, "min_p"),
        ({"typical_p": 0}, "typical_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        (
            {"param_limits": {"top_k": (1, 500)}},
            "param_limits: top_k: the range 1 to 500 must include the server's default, 0",
        ),
        ({"param_limits": {"heat": (0, 1)}}, "param_limits: unknown parameter 'heat'"),
        ({"seed": -1}, "seed"),
        ({"add_special_tokens": 1}, "add_special_tokens: must be True, False or None, not 1"),
        ({"max_queue_wait": 0}, "max_queue_wait: must be a number of seconds above 0"),
        ({"max_answer": -5}, "max_answer"),
        ({"body_timeout": 0}, "body_timeout"),
        ({"write_timeout": 0}, "write_timeout"),
        ({"shutdown_timeout": float("nan")}, "shutdown_timeout"),
        ({"max_request_bytes": 10}, "max_request_bytes"),
        ({"wire_format": "xml"}, "wire_format: must be 'text', 'sse', 'json', 'chatstream' or 'chatstream-older'"),
        ({"overload_status": 200}, "overload_status: must be 503 or 429"),
        ({"overload_status": 200, "too_many_request_as_http_error": False}, "overload_status: must be 503 or 429"),
        ({"too_many_request_as_http_error": "yes"}, "too_many_request_as_http_error: must be true or false"),
        (
            {"too_many_request_as_http_error": True, "overload_status": 503},
            "too_many_request_as_http_error: means overload_status=429, but overload_status is 503",
        ),
    ],
)
def test_an_option_out_of_its_range_is_a_value_error_that_names_both(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ChatStream(engine=echo, **options)


async def answer_async(messages: Any, params: Any) -> Any:
    yield "hello"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "model: give a loaded HuggingFace model, or a function"),
        ({"model": object()}, "tokenizer: give"),
        ({"engine": echo, "model": object()}, "engine: takes the place of model"),
        ({"engine": 5}, "engine: must be an Engine or a plain generator function"),
        ({"engine": answer_async}, "engine: must be an Engine or a plain generator function"),
        ({"engine": echo, "chat_prompt_clazz": ChatPrompt()}, "the class itself, not an object of it"),
        ({"engine": echo, "chat_prompt_clazz": dict}, "subclass of AbstractChatPrompt"),
        ({"engine": echo, "chat_prompt_clazz": None}, "must be a subclass of AbstractChatPrompt"),
        ({"engine": echo, "request_handler": object()}, "request_handler: a ConversationStore takes its place"),
        ({"engine": echo, "logger": "mine"}, "logger: must be a logging.Logger, not 'mine'"),
    ],
)
def test_a_wrong_kind_of_argument_is_a_type_error_that_says_what_to_give(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        ChatStream(**options)


async def test_a_context_longer_than_the_models_is_refused_at_start_up(start: Any, model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="context_len: must be at most 8192 with this model"):
        await start(ChatStream(model=model, tokenizer=tokenizer, context_len=9000))


async def test_a_prompt_class_that_does_not_go_with_the_model_is_refused_at_start_up(
    start: Any, model: Any, tokenizer: Any
) -> None:
    class Broken(AbstractChatPrompt):
        def create_prompt(self) -> str:
            raise ValueError("no such format")

    with pytest.raises(ValueError, match="no such format"):
        await start(ChatStream(model=model, tokenizer=tokenizer, chat_prompt_clazz=Broken))


async def test_a_prompt_class_of_ones_own_writes_the_prompt_and_its_stop_strings_hold(
    start: Any, client_of: Any, model: Any, tokenizer: Any
) -> None:
    class Plain(AbstractChatPrompt):
        def create_prompt(self) -> str:
            return "".join(f"{name}: {text}\n" if text else f"{name}:" for name, text in self.get_contents())

        def get_stop_strs(self) -> list[str]:
            return ["\n"]

    chat_stream = ChatStream(
        model=model, tokenizer=tokenizer, chat_prompt_clazz=Plain, temperature=0, max_new_tokens=32
    )
    client = client_of(await start(chat_stream))
    answer = await client.say("The capital of France is Paris. The capital of Japan is")
    assert "\n" not in answer["text"]
    text = "user: The capital of France is Paris. The capital of Japan is\nassistant:"
    assert answer["usage"]["prompt_tokens"] == len(tokenizer(text)["input_ids"])


@pytest.mark.parametrize(("option", "begins"), [(None, True), (True, True), (False, False)])
async def test_the_option_for_special_tokens_counts_more_than_the_prompt_class(
    model: Any, tokenizer: Any, option: bool | None, begins: bool
) -> None:
    class WithBos(AbstractChatPrompt):
        def create_prompt(self) -> str:
            return self.message

        def encode(self) -> list[int]:
            return [1] * self.add_special_tokens + super().encode()  # as a tokenizer that adds a BOS; this one does not

    chat_stream = ChatStream(
        model=model, tokenizer=tokenizer, chat_prompt_clazz=WithBos, add_special_tokens=option, max_new_tokens=1
    )
    async with chat_stream:
        turn = await chat_stream.begin_turn(User("me", MemoryConversationStore()), "main", TurnRequest("Hello"))
        assert await turn.wait_ended()
        assert turn.usage.prompt_tokens == len(tokenizer("Hello")["input_ids"]) + begins


async def test_a_function_tells_the_prompt_class_when_the_tokenizer_is_loaded(model: Any, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template, bare.name_or_path = None, "databricks/dolly-v2-3b"
    options: dict[str, Any] = {"chat_prompt_clazz": ChatPrompt.for_model, "max_new_tokens": 1}
    async with ChatStream(model=model, tokenizer=lambda: bare, **options) as chat_stream:
        await chat_stream.wait_ready()
        told = await chat_stream.prompt_text(Conversation(), "Hello")
    assert "### Instruction:\nHello" in told
    with pytest.raises(TypeError, match="chat_prompt_clazz: the function must return a subclass"):
        async with ChatStream(engine=echo, chat_prompt_clazz=lambda _: dict):  # type: ignore[arg-type, return-value]
            pass


async def test_the_lines_of_one_object_go_to_the_logger_that_is_given(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    mine, other = ChatStream(engine=echo, logger=logging.getLogger("mine")), ChatStream(engine=echo)
    for chat_stream in (mine, other):
        async with chat_stream:
            assert [piece async for piece in chat_stream.handle_console_input("Hello")]
    lines = [record for record in caplog.records if "finished_reason=stop" in record.getMessage()]
    assert [record.name for record in lines] == ["mine", "aiochatstream.chat"]
    assert mine.logger.name == "mine"  # as in chatstream: chat_stream.logger.setLevel(logging.DEBUG)


async def test_a_chat_stream_adds_no_log_handler() -> None:
    def handlers() -> dict[str, list[logging.Handler]]:
        loggers = {name: logging.getLogger(name) for name in ("", *logging.root.manager.loggerDict)}
        return {name: logger.handlers[:] for name, logger in loggers.items() if logger.handlers}

    before = handlers()
    async with ChatStream(engine=echo), ChatStream(engine=echo, locale="ja"):
        assert handlers() == before


async def test_a_start_that_fails_leaves_nothing_behind() -> None:
    class Broken(ScriptedEngine):
        closed = 0

        def load(self, slots: int, context_len: int) -> None:
            raise OSError("the file is gone")

        def close(self) -> None:
            self.closed += 1

    engine, tasks = Broken(), asyncio.all_tasks()
    with pytest.raises(OSError, match="the file is gone"):
        async with ChatStream(engine=engine):
            pass
    assert engine.closed == 1
    await until(lambda: asyncio.all_tasks() == tasks)


def test_what_chatstream_exports_is_exported_here() -> None:
    presets = {name for name in prompts.__all__ if name.startswith("ChatPrompt")}
    assert len(presets) == 12
    assert {"ChatStream", "AbstractChatPrompt", "LoadTime", *presets} <= set(aiochatstream.__all__)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import aiochatstream, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
