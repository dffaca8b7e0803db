"""Servers that relay OpenAI's API to fake upstreams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import aiohttp

from aiochatstream import ChatStream, Limits
from aiochatstream.engines.upstream import Upstream, UpstreamEngine
from tests.fake_upstream import FakeUpstream

CHAT = "/v1/chat/completions"
HELLO: list[dict[str, Any]] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where is it?"}]
KEY = "sk-secret-7"
WORDS = 12


def relay_to(*upstreams: FakeUpstream | str, limits: Limits | None = None, **options: Any) -> ChatStream:
    """Return a ChatStream in front of ``upstreams``."""
    urls = [upstream if isinstance(upstream, str) else upstream.url for upstream in upstreams]
    engine_options = {name: options.pop(name) for name in ("slots", "stall", "first_text", "model") if name in options}
    engine = UpstreamEngine([Upstream(url, api_key=KEY) for url in urls], **engine_options)
    return ChatStream(engine=engine, limits=limits, **options)


class Reply(NamedTuple):
    """A response as it arrived."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream, without ``[DONE]``."""
        payloads = [line.removeprefix("data: ") for line in self.body.decode().split("\n") if line.startswith("data:")]
        return [json.loads(payload) for payload in payloads if payload != "[DONE]"]

    @property
    def text(self) -> str:
        """The text of a streamed chat completion."""
        choices = [choice for event in self.events for choice in event.get("choices", ())]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def is_whole(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n")


async def post(url: str, path: str, body: bytes | dict[str, Any], **headers: str) -> Reply:
    """Send a request from a new connection, and return the response."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    async with aiohttp.ClientSession() as session, session.post(url + path, data=data, headers=headers) as response:
        return Reply(response.status, response.content_type, await response.read(), response.headers)


async def stream(url: str, **body: Any) -> Reply:
    return await post(url, CHAT, {"messages": HELLO, "stream": True, **body})
