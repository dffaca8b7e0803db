"""The constructor: an error names the argument and its range, or its new place."""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import re
import subprocess
import sys
from typing import Any, cast

import pytest

from aiochatstream import (
    AbstractChatPrompt,
    ChatPrompt,
    ChatStream,
    GenerationParams,
    Limits,
    ParamLimits,
    ScriptedEngine,
)
from aiochatstream.conversations.conversation import Conversation
from aiochatstream.moved_options import MOVED
from tests.helpers import echo, until
from tests.small_engine import SmallEngine


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_of_concurrent_executions": 0}, "num_of_concurrent_executions: must be a whole number from 1 to 100000"),
        ({"num_of_concurrent_executions": 2.5}, "num_of_concurrent_executions"),
        ({"num_of_concurrent_executions": True}, "num_of_concurrent_executions"),
        ({"max_queue_size": -1}, "max_queue_size: must be a whole number from 0 to 100000"),
        (
            {"limits": Limits(context_len=256), "params": GenerationParams(max_new_tokens=256)},
            r"context_len: must be above max_new_tokens \(256\), not 256",
        ),
        (
            {"param_limits": {"top_k": (1, 500)}},
            "param_limits: top_k: the range 1 to 500 must include the server's default, 0",
        ),
        ({"param_limits": ParamLimits(top_k=(1, 500))}, "param_limits: top_k: the range 1 to 500 must include"),
        ({"param_limits": {"heat": (0, 1)}}, "param_limits: unknown parameter 'heat'"),
        ({"seed": -1}, r"seed: must be a whole number from 0 to 2\*\*63 - 1, not -1"),
        ({"wire_format": "xml"}, "wire_format: must be 'text', 'sse' or 'json', not 'xml'.$"),
        ({"wire_format": "chatstream"}, "wire_format: .*, not 'chatstream'; .* aiochatstream.compat.ChatStream"),
        ({"params": GenerationParams(seed=7)}, "params.seed: must be absent; it is specified for each answer"),
        ({"params": GenerationParams(stop=("a",))}, "params.stop: must be absent"),
        ({"params": GenerationParams(logprobs=2)}, "params.logprobs: must be absent"),
    ],
)
def test_an_option_out_of_its_range_is_a_value_error_that_names_both(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        ChatStream(engine=echo, **options)


def test_the_signature_can_be_read() -> None:
    """Options that have moved are no part of it."""
    parameters = inspect.signature(ChatStream).parameters
    assert {"model", "tokenizer", "params", "limits"} <= parameters.keys()
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert all(f":param {name}:" in (ChatStream.__doc__ or "") for name in parameters)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("temperature", "is part of params now: ChatStream(params=GenerationParams(temperature=...))."),
        ("logit_bias", "is part of params now: ChatStream(params=GenerationParams(logit_bias=...))."),
        ("context_len", "is part of limits now: ChatStream(limits=Limits(context_len=...))."),
        ("overload_status", "is part of limits now: ChatStream(limits=Limits(overload_status=...))."),
        ("record", "is an engine now: ChatStream(engine=RecordingEngine("),
        ("token_sampler", "is part of the engine now: ChatStream(engine=TransformersEngine("),
        ("use_mock_response", "is an engine now: ChatStream(engine=ScriptedEngine("),
        ("mock_params", "is an engine now: ChatStream(engine=ScriptedEngine("),
        ("add_special_tokens", "is an attribute of the prompt class now"),
        ("on_feedback_received", "is on_feedback now"),
        ("request_handler", "is conversation_store now"),
        ("probe_mode_enabled", "is an option of aiochatstream.compat.ChatStream only"),
        ("too_many_request_as_http_error", "is an option of aiochatstream.compat.ChatStream only"),
        ("num_gpus", "is an option of aiochatstream.compat.ChatStream only"),
    ],
)
def test_an_option_that_has_moved_is_a_type_error_with_its_new_place(option: str, says: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(f'{option}: {says}')}"):
        ChatStream(engine=echo, **cast(Any, {option: None}))


@pytest.mark.parametrize("model", [GenerationParams, Limits])
def test_an_option_works_in_its_new_place(model: type[GenerationParams] | type[Limits]) -> None:
    argument = "params" if model is GenerationParams else "limits"
    moved = [name for name in model.model_fields if name in MOVED]
    values = {name: getattr(model(), name) for name in moved}
    assert moved
    assert getattr(ChatStream(engine=echo, **{argument: model(**values)}), argument) == model()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["temprature", "stop"])
def test_an_unknown_option_is_pythons_type_error(name: str) -> None:
    with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{name}'"):
        ChatStream(engine=echo, **{name: 1})  # type: ignore[arg-type]


async def answer_async(messages: Any, params: Any) -> Any:
    return "hello"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "model: must be a loaded HuggingFace model or a function"),
        ({"model": object()}, "tokenizer: must be"),
        ({"engine": echo, "model": object()}, "engine: must be absent if model and tokenizer are specified"),
        ({"engine": 5}, "engine: must be an Engine or a generator function"),
        ({"engine": answer_async}, "engine: must be an Engine or a generator function"),
        ({"engine": echo, "chat_prompt_clazz": ChatPrompt()}, "the class itself, not an instance"),
        ({"engine": echo, "chat_prompt_clazz": dict}, "subclass of AbstractChatPrompt"),
        ({"engine": echo, "chat_prompt_clazz": None}, "must be a subclass of AbstractChatPrompt"),
        ({"engine": echo, "params": {"temperature": 0}}, r"params: must be GenerationParams\(...\), not {'temp"),
        ({"engine": echo, "limits": 5}, r"limits: must be Limits\(...\), not 5"),
        ({"engine": echo, "logger": "mine"}, "logger: must be a logging.Logger, not 'mine'"),
    ],
)
def test_an_argument_of_the_wrong_type_is_a_type_error_that_names_the_expected_type(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(TypeError, match=says):
        ChatStream(**options)


async def test_a_context_longer_than_the_models_is_refused_at_startup(start: Any, model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="context_len: must be at most 8192 with this model"):
        await start(ChatStream(model=model, tokenizer=tokenizer, limits=Limits(context_len=9000)))


async def test_a_prompt_class_that_does_not_match_the_model_is_refused_at_startup(
    start: Any, small_engine: SmallEngine
) -> None:
    class Broken(AbstractChatPrompt):
        def create_prompt(self) -> str:
            raise ValueError("no such format")

    with pytest.raises(ValueError, match="no such format"):
        await start(ChatStream(engine=small_engine, chat_prompt_clazz=Broken))


async def test_a_custom_prompt_class_writes_the_prompt_and_stops_at_its_strings(
    start: Any, client_of: Any, small_engine: SmallEngine, tokenizer: Any
) -> None:
    class Plain(AbstractChatPrompt):
        def create_prompt(self) -> str:
            return "".join(f"{name}: {text}\n" if text else f"{name}:" for name, text in self.get_contents())

        def get_stop_strs(self) -> list[str]:
            return ["\n"]

    chat_stream = ChatStream(
        engine=small_engine,
        chat_prompt_clazz=Plain,
        params=GenerationParams(temperature=0, max_new_tokens=32),
    )
    client = client_of(await start(chat_stream))
    answer = await client.say("The capital of France is Paris. The capital of Japan is")
    assert "\n" not in answer["text"]
    text = "user: The capital of France is Paris. The capital of Japan is\nassistant:"
    assert answer["usage"]["prompt_tokens"] == len(tokenizer(text)["input_ids"])


async def test_a_function_returns_the_prompt_class_for_the_loaded_tokenizer(model: Any, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template, bare.name_or_path = None, "databricks/dolly-v2-3b"
    async with ChatStream(model=model, tokenizer=lambda: bare, chat_prompt_clazz=ChatPrompt.for_model) as chat_stream:
        await chat_stream.wait_ready()
        text = await chat_stream.prompt_text(Conversation(), "Hello")
    assert "### Instruction:\nHello" in text
    with pytest.raises(TypeError, match="chat_prompt_clazz: the function must return a subclass"):
        async with ChatStream(engine=echo, chat_prompt_clazz=lambda _: dict):  # type: ignore[arg-type, return-value]
            pass


async def test_an_object_logs_to_the_configured_logger(caplog: pytest.LogCaptureFixture) -> None:
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


async def test_a_failed_startup_releases_all_resources() -> None:
    class Broken(ScriptedEngine):
        closed = 0

        def load(self, slots: int, context_len: int | None) -> None:
            raise OSError("the file is gone")

        def close(self) -> None:
            self.closed += 1

    engine, tasks = Broken(), asyncio.all_tasks()
    with pytest.raises(OSError, match="the file is gone"):
        async with ChatStream(engine=engine):
            pass
    assert engine.closed == 1
    await until(lambda: asyncio.all_tasks() == tasks)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import aiochatstream, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
