"""Tests that the endpoints behave as /openapi.json describes, and of the documentation page."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Mapping
from typing import Any

import aiohttp
import aiohttp_session
import pytest
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from aiochatstream import ChatStream, Limits, MemoryStorage, ScriptedEngine
from aiochatstream.web.openai.routes import ENDPOINTS as OPENAI_ENDPOINTS
from aiochatstream.web.openai.routes import TOKENIZATION
from aiochatstream.web.openapi import docs_page
from aiochatstream.web.routes import ENDPOINTS
from tests.helpers import Client, ClientOf, Server, StartServer, echo, role_of, serving

EXAMPLES = 12
"""Requests for each endpoint."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


async def document_of(server: Server, client: Client) -> dict[str, Any]:
    async with client.session.get(f"{server.url}/openapi.json") as response:
        assert response.status == 200
        document: dict[str, Any] = await response.json()
        return document


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize(
    "name", [name for name in (*ENDPOINTS, *OPENAI_ENDPOINTS, *TOKENIZATION) if name != "openapi"]
)  # read in each test
async def test_responses_to_generated_requests_match_the_document(
    start: StartServer, client_of: ClientOf, name: str
) -> None:
    engine = ScriptedEngine(answers=["Hello there."], time_per_token_sec=0.0)
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=4, max_queue_size=100))
    endpoint = {**ENDPOINTS, **OPENAI_ENDPOINTS, **TOKENIZATION}[name]

    def send() -> None:
        described = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        operations = [result.ok() for result in described.get_all_operations() if isinstance(result, Ok)]
        (operation,) = [item for item in operations if item.definition.raw["operationId"] == name]
        cases = operation.as_strategy()
        if endpoint.body is not None or endpoint.query is not None:
            cases |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)  # mostly invalid requests

        @given(case=cases)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Case[Any]) -> None:
            case.call_and_validate(base_url=server.url, checks=CHECKS)

        check()

    await asyncio.to_thread(send)
    assert server.idle


async def test_every_endpoint_is_described_with_summary_body_and_errors(
    start: StartServer, client_of: ClientOf
) -> None:
    server = await start(ChatStream(engine=echo, limits=Limits(overload_status=429)))
    document = await document_of(server, client_of(server))
    described = {
        operation["operationId"]: operation for path in document["paths"].values() for operation in path.values()
    }
    assert described.keys() == {
        *ENDPOINTS,
        *OPENAI_ENDPOINTS,
        *TOKENIZATION,
        "readyz_2",  # at /health
    }
    schemathesis.openapi.from_dict(document).validate()  # OpenAPI 3.1
    for operation in described.values():
        assert re.fullmatch(r"[A-Z].*\.", operation["summary"])
        assert operation["responses"]["200"]["content"]
    chat = described["chat_stream"]
    assert {"400", "401", "403", "409", "413", "415", "422", "429", "503"} <= chat["responses"].keys()
    assert "too_many_requests" in chat["responses"]["429"]["description"]
    assert {"429", "500"} <= described["chat_completions"]["responses"].keys()
    assert described["chat_completions"]["responses"]["429"]["headers"].keys() == {"Retry-After", "Retry-After-Ms"}
    assert "422" not in described["chat_completions"]["responses"]
    assert not [name for name in document["components"]["schemas"] if "__" in name]  # pydantic's duplicate names


async def test_the_document_contains_the_mounted_endpoints_with_their_paths() -> None:
    app = web.Application()
    first, other = ChatStream(engine=echo), ChatStream(engine=echo, namespace="other")
    aiohttp_session.setup(app, MemoryStorage())
    app.add_routes(first.routes(include=["chat_stream", "openapi"], prefix="/one"))
    other.setup_openai(app, "/other/v1")
    app.add_routes(other.routes(include=["openapi"], prefix="/other"))
    first.setup(app)
    async with serving(app) as url:
        paths = {}
        for name in ("one", "other"):
            async with aiohttp.request("GET", f"{url}/{name}/openapi.json") as response:
                paths[name] = list((await response.json())["paths"])
    assert paths["one"] == ["/one/chat_stream", "/one/openapi.json"]
    others = ["/other/v1" + re.sub(":.*}", "}", endpoint.path) for endpoint in OPENAI_ENDPOINTS.values()]
    assert paths["other"] == [*others, "/other/tokenize", "/other/detokenize", "/other/openapi.json"]


async def test_api_keys_are_described_where_required(start: StartServer, client_of: ClientOf) -> None:
    for keys in (None, ["a-key"]):
        server = await start(ChatStream(engine=echo), api_keys=keys)
        document = await document_of(server, client_of(server))
        paths = [
            path for path, (method, *_) in document["paths"].items() if "security" in document["paths"][path][method]
        ]
        assert ("securitySchemes" in document["components"]) == bool(paths) == (keys is not None)
        assert all(path.startswith("/v1/") or path in ("/tokenize", "/detokenize") for path in paths)
        async with client_of(server).session.get(f"{server.url}/docs") as response:
            page = await response.text()
        assert ("Bearer" in page) == (keys is not None)
        assert f"curl {server.url}/v1/chat/completions -H" in page


async def test_the_page_lists_every_endpoint_and_loads_nothing(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=echo))
    async with client_of(server).session.get(f"{server.url}/docs") as response:
        page = await response.text()
        policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    for endpoint in ENDPOINTS.values():
        assert f"{endpoint.path}</code>" in page
    for endpoint in OPENAI_ENDPOINTS.values():
        assert f"/v1{endpoint.path.partition(':')[0].rstrip('}')}" in page
    assert not re.search(r"<script|<link|src=|url\(|href=\"\w+:", page)
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= set(re.findall(r'id="([^"]+)"', page))


async def test_roles_can_forbid_document_and_page(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=echo, client_roles={"user": role_of("nothing", allow=["chat_stream"])}))
    for path in ("/openapi.json", "/docs"):
        async with client_of(server).session.get(server.url + path) as response:
            assert response.status == 403


async def test_the_page_is_rendered_once_and_off_the_event_loop(
    start: StartServer, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    render = docs_page.render

    def recording_render(document: Mapping[str, Any]) -> str:
        threads.append(threading.current_thread())
        return render(document)

    monkeypatch.setattr(docs_page, "render", recording_render)
    client = client_of(await start(ChatStream(engine=echo, allowed_hosts=["*.example"])))
    for host in ("one.example", "two.example:81"):
        async with client.session.get(f"{client.url}/docs", headers={"Host": host}) as response:
            assert f"curl http://{host}/history" in await response.text()
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
