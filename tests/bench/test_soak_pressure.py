"""Comparison of the answers under memory pressure, in the soak test."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.processes import ROOT

if TYPE_CHECKING:
    from soak_pressure import Pressure

ANSWER = [5, 6, 7]
METRICS = """\
# TYPE aiochatstream_kv_cache_used_tokens gauge
aiochatstream_kv_cache_used_tokens {}
aiochatstream_kv_cache_free_tokens {}
aiochatstream_prefix_cache_tokens {}
aiochatstream_num_requests_waiting_for_memory {}
"""


class Completions:
    """A server of /v1/completions with scripted token ids, or with another status."""

    def __init__(self) -> None:
        self.ids = ANSWER
        self.status = 200
        self.end = "data: [DONE]\n\n"

    async def respond(self, request: web.Request) -> web.Response:
        await request.read()
        events = "".join(f"data: {json.dumps({'choices': [{'token_ids': [id_]}]})}\n\n" for id_ in self.ids)
        return web.Response(status=self.status, text=events + self.end, content_type="text/event-stream")


@pytest.fixture
def pressure(monkeypatch: pytest.MonkeyPatch) -> Pressure:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    module = importlib.import_module("soak_pressure")
    pressure: Pressure = module.Pressure(random.Random(0))  # noqa: S311 - not security-relevant
    pressure.prompts.append(module.FixedPrompt([1, 2], ANSWER))
    return pressure


@pytest.fixture
async def completions() -> AsyncIterator[tuple[Completions, str]]:
    server = Completions()
    app = web.Application()
    app.router.add_post("/v1/completions", server.respond)
    async with TestServer(app) as running:
        yield server, str(running.make_url("")).rstrip("/")


async def ask(pressure: Pressure, url: str) -> str:
    async with aiohttp.ClientSession() as session:
        return await pressure.ask(session, url, 0)


def results(pressure: Pressure) -> dict[str, str]:
    return {check.name: check.word for check in pressure.checks()}


@pytest.mark.parametrize(
    ("changes", "result", "word"),
    [
        ({}, "exact", "ok"),
        ({"ids": [5, 9, 7]}, "different", "FAILED"),
        ({"ids": [5, 6]}, "different", "FAILED"),
        ({"ids": [5, 6, 7, 8]}, "different", "FAILED"),
        ({"end": ""}, "failed", "FAILED"),
        ({"end": 'data: {"error": {"code": "engine_error"}}\n\n'}, "failed", "FAILED"),
        ({"status": 500}, "failed", "FAILED"),
        ({"status": 503}, "refused", "FAILED"),  # nothing was compared
    ],
)
async def test_answers_are_compared(
    pressure: Pressure,
    completions: tuple[Completions, str],
    changes: dict[str, Any],
    result: str,
    word: str,
) -> None:
    server, url = completions
    vars(server).update(changes)
    assert await ask(pressure, url) == result
    assert pressure.answers == {result: 1}
    assert results(pressure)["answers"] == word


async def test_tokens_before_a_disconnect_are_compared(
    pressure: Pressure, completions: tuple[Completions, str]
) -> None:
    server, url = completions
    async with aiohttp.ClientSession() as session:
        for _ in range(50):
            assert await pressure.ask(session, url) in ("exact", "exact, aborted")
        assert set(pressure.answers) == {"exact", "exact, aborted"}
        server.ids = [9, 9, 9]
        assert await pressure.ask(session, url) == "different"


@pytest.mark.parametrize(
    ("last", "failed"),
    [
        ((0, 40, 8), set()),
        ((16, 24, 8), {"memory in use", "memory lost"}),
        ((0, 24, 8), {"memory lost"}),
    ],
)
def test_memory_is_returned(pressure: Pressure, last: tuple[int, int, int], failed: set[str]) -> None:
    pressure.answers["exact"] = 1
    assert results(pressure)["memory in use"] == "FAILED"  # unknown
    pressure.record_gauges(METRICS.format(0, 48, 0, 0))
    assert results(pressure)["no pressure"] == "FAILED"
    pressure.record_gauges(METRICS.format(48, 0, 0, 1))
    pressure.record_gauges(METRICS.format(*last, 0))
    assert {name for name, word in results(pressure).items() if word == "FAILED"} == failed
    assert pressure.peaks["kv_cache_used_tokens"] == 48
