"""Construction: what is wrong is told at once, with the name and the range."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from aiochatstream import AbstractChatPrompt, ChatPrompt, ChatStream
from tests.helpers import echo


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
            "param_limits: top_k: must hold the server's own, 0; 1 to 500 does not",
        ),
        ({"param_limits": {"heat": (0, 1)}}, "param_limits: 'heat' is none of"),
        ({"seed": -1}, "seed"),
        ({"max_queue_wait": 0}, "max_queue_wait: must be a number of seconds above 0"),
        ({"max_answer": -5}, "max_answer"),
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
        ({"engine": echo, "chat_prompt_clazz": None}, "subclass of AbstractChatPrompt"),
    ],
)
def test_a_wrong_kind_of_argument_is_a_type_error_that_says_what_to_give(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        ChatStream(**options)


async def test_a_context_longer_than_the_models_is_refused_at_start_up(start: Any, model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="context_len: at most 8192 with this model"):
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


def test_importing_the_package_imports_no_torch() -> None:
    code = "import aiochatstream, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
