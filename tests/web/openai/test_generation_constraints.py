"""Slow checks of constraints, before the answers have slots."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from aiochatstream import ChatStream, FunctionEngine, GenerationParams
from aiochatstream.runtime import engine_runtime
from aiochatstream.runtime.engine_runtime import PROMPT_THREADS
from tests.helpers import PATIENCE, StartServer, echo, until
from tests.web.openai.helpers import HI, OpenAIClientOf

CONSTRAINED: dict[str, Any] = {"model": "", "messages": HI, "response_format": {"type": "json_object"}}


class SlowToCheck(FunctionEngine):
    """An engine that accepts constraints, but does not finish a check before ``allowed`` is set."""

    def __init__(self) -> None:
        super().__init__(echo)
        self.started, self.allowed = threading.Event(), threading.Event()
        self.checked = 0

    def check(self, params: GenerationParams) -> None:
        if params.constraint is not None:
            self.checked += 1
            self.started.set()
            self.allowed.wait(PATIENCE)


async def test_slow_constraint_checks_occupy_no_slot_and_no_prompt_thread(
    start: StartServer, openai_of: OpenAIClientOf
) -> None:
    engine = SlowToCheck()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=1))
    create = openai_of(server).chat.completions.create
    constrained = [asyncio.create_task(create(**CONSTRAINED)) for _ in range(PROMPT_THREADS + 1)]
    await until(lambda: engine.started.is_set() and server.chat_stream.slow_checks == len(constrained))
    for _ in range(2):
        assert (await create(model="", messages=HI)).choices[0].message.content == "one two three "
    assert not any(task.done() for task in constrained)
    engine.allowed.set()
    outcomes = await asyncio.gather(*constrained, return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, ChatCompletion) or getattr(outcome, "status_code", None) == 503
    assert (await create(**CONSTRAINED)).choices
    assert server.idle


async def test_constraints_of_disconnected_clients_are_not_checked(
    start: StartServer, openai_of: OpenAIClientOf
) -> None:
    engine = SlowToCheck()
    server = await start(ChatStream(engine=engine))
    create = openai_of(server).chat.completions.create
    requests = [asyncio.create_task(create(**CONSTRAINED)) for _ in range(7)]
    await until(lambda: engine.started.is_set() and server.chat_stream.slow_checks == len(requests))
    for task in requests:
        task.cancel()
    await until(lambda: server.chat_stream.slow_checks == 0)
    engine.allowed.set()
    assert (await create(**CONSTRAINED)).choices
    assert engine.checked == 2, "checked for a disconnected client"
    assert server.idle


async def test_only_excess_slow_checks_are_refused(
    start: StartServer, openai_of: OpenAIClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_runtime, "MAX_SLOW_CHECKS", 2)
    engine = SlowToCheck()
    server = await start(ChatStream(engine=engine))
    create = openai_of(server).chat.completions.create
    checking = [asyncio.create_task(create(**CONSTRAINED)) for _ in range(2)]
    await until(lambda: server.chat_stream.slow_checks == 2)
    with pytest.raises(openai.InternalServerError, match="schemas are being compiled") as refused:
        await create(**CONSTRAINED)
    assert refused.value.status_code == 503
    assert (await create(model="", messages=HI)).choices
    engine.allowed.set()
    await asyncio.gather(*checking)
