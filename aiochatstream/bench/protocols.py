"""The protocols that the load generator speaks: where a request goes, what it says and how its answer is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from aiochatstream.bench.plan import Plan
from aiochatstream.bench.response_parsers import AnswerReader, CumulativeReader, OpenAIReader, SseReader, TextReader

Messages = list[dict[str, str]]
MakeBody = Callable[[Plan, str | None, Messages], dict[str, Any]]


@dataclass(frozen=True)
class Protocol:
    """One way to ask for a streamed answer.

    make_body: the request's JSON, of the plan, the model's name and the conversation up to the new message.
    keeps_history: the server remembers the conversation (by cookie); otherwise the client sends it all each time.
    """

    title: str
    path: str
    accept: str
    reader: type[AnswerReader]
    make_body: MakeBody
    keeps_history: bool = True

    def endpoint(self, url: str) -> URL:
        """Where to post, for the server's base URL or the endpoint itself."""
        base, path = url.rstrip("/"), self.path
        if base.endswith("/v1"):
            path = path.removeprefix("/v1")
        return URL(base if base.endswith(path) else base + path)


def own_body(plan: Plan, model: str | None, messages: Messages) -> dict[str, Any]:
    params: dict[str, Any] = {"max_new_tokens": plan.max_tokens, "temperature": plan.temperature}
    if plan.ignore_eos:
        params["ignore_eos"] = True
    return {"user_input": messages[-1]["content"], "params": params}


def openai_body(plan: Plan, model: str | None, messages: Messages) -> dict[str, Any]:
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


def chatstream_body(plan: Plan, model: str | None, messages: Messages) -> dict[str, Any]:
    return {"user_input": messages[-1]["content"], "regenerate": False}


PROTOCOLS = {
    "sse": Protocol("aiochatstream's events", "/chat_stream", "text/event-stream", SseReader, own_body),
    "text": Protocol("aiochatstream's plain text", "/chat_stream", "text/plain", TextReader, own_body),
    "openai": Protocol(
        "OpenAI's chat completions",
        "/v1/chat/completions",
        "text/event-stream",
        OpenAIReader,
        openai_body,
        keeps_history=False,
    ),
    "chatstream": Protocol("chatstream 0.3.0's text", "/chat_stream", "*/*", CumulativeReader, chatstream_body),
}


@dataclass
class User:
    """One user: a cookie jar, and what was said so far where the server does not keep it."""

    number: int
    session: aiohttp.ClientSession
    messages: Messages = field(default_factory=list)


@dataclass
class Target:
    """The server under load. Users share its connections, but not their cookies."""

    plan: Plan
    protocol: Protocol
    connector: aiohttp.TCPConnector
    model: str | None = None
    users: int = 0

    @property
    def endpoint(self) -> URL:
        return self.protocol.endpoint(self.plan.url)

    def new_user(self) -> User:
        """A user nobody has seen. The caller closes its session."""
        self.users += 1
        # chatstream sets Secure cookies; as browsers do for localhost, they are sent back over plain HTTP
        jar = aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=self.endpoint.origin())
        session = aiohttp.ClientSession(
            connector=self.connector,
            connector_owner=False,
            cookie_jar=jar,
            headers={"Accept": self.protocol.accept, "Accept-Encoding": "identity", **dict(self.plan.headers)},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.plan.timeout),
        )
        return User(self.users, session)

    def body(self, user: User, prompt: str) -> dict[str, Any]:
        """The JSON with which ``user`` says ``prompt``."""
        messages = [*user.messages, {"role": "user", "content": prompt}]
        return {**self.protocol.make_body(self.plan, self.model, messages), **self.plan.extra_body}

    def learn(self, user: User, prompt: str, answer: str) -> None:
        """``user`` got a complete answer."""
        if not self.protocol.keeps_history:
            user.messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
