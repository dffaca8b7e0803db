"""Tests of the replicas without Ray, whose part :mod:`tests.ray.try_ray` tries: ``make test-ray``."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import aiohttp
import pytest

from aiochatstream import ChatPrompt, Engine, ScriptedEngine
from aiochatstream import ray as ray_servers
from aiochatstream.engines import FunctionEngine
from aiochatstream.errors import EngineStopped
from aiochatstream.extras import MissingExtra
from aiochatstream.ray import AppArguments, ModelServer, ServerList
from tests.helpers import Stepper, until
from tests.processes import free_port

KEY = "a-key-that-nobody-can-guess"
QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}


class NoReplicas(Exception):
    """Ray's error."""


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the part of Ray that replicas use."""
    modules = {name: ModuleType(name) for name in ("ray", "ray.util", "ray.serve", "ray.serve.exceptions")}
    modules["ray"].util = modules["ray.util"]  # type: ignore[attr-defined]
    modules["ray.util"].get_node_ip_address = lambda: "127.0.0.1"  # type: ignore[attr-defined]
    modules["ray.serve.exceptions"].DeploymentUnavailableError = NoReplicas  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("AIOCHATSTREAM_API_KEYS", KEY)


@asynccontextmanager
async def replica(
    monkeypatch: pytest.MonkeyPatch, engine: Engine | None = None, **arguments: Any
) -> AsyncIterator[ModelServer]:
    monkeypatch.setattr(ray_servers, "_engine", lambda _: engine or ScriptedEngine())
    monkeypatch.setattr(ray_servers, "prompt_class_of", lambda *_, **__: ChatPrompt)  # these engines have no template
    server = ModelServer.__new__(ModelServer)
    await ModelServer.__init__(server, AppArguments(**arguments))
    try:
        yield server
    finally:
        await server.__del__()


@asynccontextmanager
async def authorized() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        yield session


def test_arguments_are_texts() -> None:
    texts: dict[str, Any] = {"replicas": "4", "num_gpus": "0.5", "trust_remote_code": "true", "dtype": "float32"}
    arguments = AppArguments(**texts)
    assert (arguments.replicas, arguments.num_gpus, list(arguments.port_range)) == (4, 0.5, [0])
    assert (arguments.load_options().trust_remote_code, arguments.load_options().dtype) == (True, "float32")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"replicas": "0"}, "replicas: must be a whole number from 1 to 1000, not '0'."),
        ({"replica": "2"}, "replica: unknown field; choose from model, replicas, max_replicas, "),
        ({"replicas": "3", "max_replicas": "2"}, "max_replicas: must be at least replicas (3), not 2."),
        ({"num_gpus": "all"}, "num_gpus: must be a number from 0 to 64, not 'all'."),
        ({"ports": "8199-8100"}, "ports: must be a port from 0 to 65535, or a range such as 8100-8199, not 8199-8100."),
        ({"ports": "70000"}, "ports: must be a port from 0 to 65535, or a range such as 8100-8199, not 70000."),
        ({"ports": "any"}, "ports: must be a port from 0 to 65535, or a range such as 8100-8199, not 'any'."),
        ({"compile": "often"}, "compile: must be true or false, not 'often'."),
        ({"dtype": "int8"}, "dtype: must be 'auto', 'float32', 'float16' or 'bfloat16', not 'int8'."),
        ({"device": "cpu", "device_map": "auto"}, "device: must be auto with device_map, "),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        AppArguments(**arguments)


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"'aiochatstream\[ray\]'"):
        ray_servers.app({})


async def test_a_replica_answers_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(monkeypatch) as server, authorized() as session:
        url = await server.url()
        async with session.get(f"{url}/health") as response:
            assert response.status == 200
        async with session.post(f"{url}/v1/chat/completions", json=QUESTION) as response:
            assert (await response.text()).endswith("data: [DONE]\n\n")
        async with aiohttp.ClientSession() as stranger, stranger.get(f"{url}/v1/models") as response:
            assert response.status == 401


async def test_a_replica_without_a_key_logs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AIOCHATSTREAM_API_KEYS")
    async with replica(monkeypatch) as server:
        assert f"{await server.url()} requires no API key" in caplog.text


async def test_replicas_of_a_node_use_different_ports_of_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    ports = f"{port}-{port + 1}"
    with socket.create_server(("127.0.0.1", port)):
        async with replica(monkeypatch, ports=ports) as server:
            assert await server.url() == f"http://127.0.0.1:{port + 1}"
            with pytest.raises(OSError, match=f"ports: none of {port} to {port + 1} is free on 127"):
                ray_servers._listen("127.0.0.1", range(port, port + 2))


async def test_a_replica_that_ends_finishes_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = Stepper()

    def count(messages: list[dict[str, str]], params: Any) -> Any:
        for _, text in zip(range(3), stepper(messages, params), strict=False):
            yield text

    async with authorized() as session:
        async with replica(monkeypatch, FunctionEngine(count)) as server:
            url = await server.url()
            stepper.allow()
            response = await session.post(f"{url}/v1/chat/completions", json=QUESTION)
            ending = asyncio.ensure_future(server.__del__())
            await until(lambda: server._chat_stream.state == "draining")
            stepper.allow(2)
            body = await response.text()
            await ending
        assert '"content":"1 "' in body.replace(": ", ":")
        assert body.endswith("data: [DONE]\n\n")


async def test_ray_replaces_a_replica_whose_engine_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine()
    async with replica(monkeypatch, engine) as server:
        await server.check_health()
        monkeypatch.setattr(engine, "unavailable", lambda: EngineStopped("The engine has stopped."))
        with pytest.raises(EngineStopped):
            await server.check_health()


async def test_the_load_counts_running_and_waiting_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(monkeypatch, concurrency=2) as server:
        assert await server.record_autoscaling_stats() == {"load": 0.0}
        tickets = [await server._chat_stream.admission.reserve() for _ in range(3)]
        assert await server.record_autoscaling_stats() == {"load": 1.5}
        for ticket in tickets:
            ticket.release()


@pytest.mark.parametrize(
    ("metrics", "replicas"),
    [(None, 2), ({}, 2), ({"load": {"a": 0.4, "b": 0.4}}, 1), ({"load": {"a": 1.0, "b": 3.0}}, 5)],
)
def test_the_number_of_replicas_follows_their_load(metrics: Any, replicas: int) -> None:
    context = SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=2)
    assert ray_servers.scale(context)[0] == pytest.approx(replicas)


class Handle:
    """A handle of replicas, which have the results of ``results_async`` in turn."""

    def __init__(self, *results: Any) -> None:
        self._results = list(results)

    def broadcast(self, method: str) -> Handle:
        assert method == "url"
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> Any:
        assert return_exceptions
        result = self._results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


async def test_the_list_contains_the_replicas_that_respond() -> None:
    request = SimpleNamespace(url=SimpleNamespace(path="/upstreams"))
    urls = ["http://10.0.0.1:9", "http://10.0.0.2:9"]
    servers = ServerList(Handle(urls[::-1], [urls[0], RuntimeError("died")], TimeoutError(), NoReplicas()))
    for expected in (urls, urls[:1], urls[:1], []):
        assert await servers(request) == {"upstreams": expected}
