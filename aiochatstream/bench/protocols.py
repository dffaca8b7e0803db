"""Protocols of the load generator: endpoint, request body and parser of the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from aiochatstream.bench.plan import Plan
from aiochatstream.bench.response_parsers import (
    ChatEventParser,
    CumulativeTextParser,
    OpenAIParser,
    ResponseParser,
    TextParser,
)

ChatMessages = list[dict[str, str]]
BodyBuilder = Callable[[Plan, str | None, ChatMessages], dict[str, Any]]


@dataclass(frozen=True)
class Protocol:
    """Protocol of streamed answers.

    build_body: builds the JSON of a request from the plan, the model's name and the messages up to the new one.
    stateful: the server stores the conversation (by cookie); otherwise each request contains all of it.
    """

    path: str
    accept: str
    parser_class: type[ResponseParser]
    build_body: BodyBuilder
    stateful: bool = True

    def endpoint(self, url: str) -> URL:
        """Return the endpoint's URL. ``url`` is the server's base URL or the endpoint."""
        base, path = url.rstrip("/"), self.path
        if base.endswith("/v1"):
            path = path.removeprefix("/v1")
        return URL(base if base.endswith(path) else base + path)


def aiochatstream_body(plan: Plan, model: str | None, messages: ChatMessages) -> dict[str, Any]:
    params: dict[str, Any] = {"max_new_tokens": plan.max_tokens, "temperature": plan.temperature}
    if plan.ignore_eos:
        params["ignore_eos"] = True
    return {"user_input": messages[-1]["content"], "params": params}


def openai_body(plan: Plan, model: str | None, messages: ChatMessages) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": plan.max_tokens,
        "temperature": plan.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if plan.ignore_eos:
        body["ignore_eos"] = True
    return body


def chatstream_body(plan: Plan, model: str | None, messages: ChatMessages) -> dict[str, Any]:
    return {"user_input": messages[-1]["content"], "regenerate": False}


PROTOCOLS = {
    "sse": Protocol("/chat_stream", "text/event-stream", ChatEventParser, aiochatstream_body),
    "text": Protocol("/chat_stream", "text/plain", TextParser, aiochatstream_body),
    "openai": Protocol(
        "/v1/chat/completions",
        "text/event-stream",
        OpenAIParser,
        openai_body,
        stateful=False,
    ),
    "chatstream": Protocol("/chat_stream", "*/*", CumulativeTextParser, chatstream_body),
}


@dataclass
class LoadUser:
    """A simulated user with a cookie jar, and with the conversation if the server is stateless."""

    number: int
    session: aiohttp.ClientSession
    messages: ChatMessages = field(default_factory=list)


@dataclass
class Target:
    """The server under load. Users share connections but not cookies."""

    plan: Plan
    protocol: Protocol
    connector: aiohttp.TCPConnector
    model: str | None = None
    user_count: int = 0

    @property
    def endpoint(self) -> URL:
        return self.protocol.endpoint(self.plan.url)

    def new_user(self) -> LoadUser:
        """Return a user that the server has not seen. The caller closes its session."""
        self.user_count += 1
        # chatstream sets Secure cookies; like browsers on localhost, return them over plain HTTP
        jar = aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=self.endpoint.origin())
        session = aiohttp.ClientSession(
            connector=self.connector,
            connector_owner=False,
            cookie_jar=jar,
            headers={"Accept": self.protocol.accept, "Accept-Encoding": "identity", **dict(self.plan.headers)},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.plan.timeout),
        )
        return LoadUser(self.user_count, session)

    def body(self, user: LoadUser, prompt: str) -> dict[str, Any]:
        """Return the JSON of the request that sends ``prompt``."""
        messages = [*user.messages, {"role": "user", "content": prompt}]
        return {**self.protocol.build_body(self.plan, self.model, messages), **self.plan.extra_body}

    def add_turn(self, user: LoadUser, prompt: str, answer: str) -> None:
        """Extend the conversation of ``user``, if the server is stateless."""
        if not self.protocol.stateful:
            user.messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
