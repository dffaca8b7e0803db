"""Backend for a running aiochatstream server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from aiochatstream.console.backend import Backend
from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.export import ExportedConversation
from aiochatstream.conversations.user import SaveResult
from aiochatstream.errors import AnswerElsewhere, ChatStreamError, Unavailable
from aiochatstream.params import ParamOverrides
from aiochatstream.runtime.events import Ended, Event, Failed, Queued, Started, Text, Thinking, Timing, Usage
from aiochatstream.sse import EventParser, json_object
from aiochatstream.terminal import one_line, os_error_reason
from aiochatstream.texts import Texts

CONNECT_TIMEOUT = 10.0
"""Seconds to connect to the server."""

READ_TIMEOUT = 60.0
"""Seconds without data after which a connection counts as broken; the server sends a heartbeat every 15 s."""


class ServerBackend(Backend):
    """Conversation with the server at ``url``, as one user, whose cookies last as long as the program.

    Used in an ``async with``, which raises ChatStreamError if the server is not available.
    """

    def __init__(self, url: str, texts: Texts) -> None:
        self._url, self._texts = _base_url(url), texts
        self.name = str(self._url.with_user(None))  # without a password
        self._answering = False
        self._answer_elsewhere = False
        self._system = ""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # accept cookies of IP addresses also
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT),
        )
        try:
            await self.save()
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def answer(self, message: str | None, params: ParamOverrides) -> AsyncGenerator[Event, None]:
        body: dict[str, Any] = {"user_input": message, "regenerate": message is None}
        if changes := params.model_dump(exclude_none=True):
            body["params"] = changes
        if self._system:
            body["system"] = self._system
        if self._answer_elsewhere:  # the error message announced this to the user
            body["abandon_lost"] = True
        with self._translate_errors():
            async with self._request("POST", "/chat_stream", body, accept="text/event-stream") as response:
                await self._check(response, "text/event-stream")
                self._answering, self._answer_elsewhere = True, False
                try:
                    parser = EventParser()
                    async for data in response.content.iter_any():
                        for name, raw in parser.feed(data):
                            event = _parse_event(name, json_object(raw))
                            if not isinstance(event, Ended | Failed):
                                yield event
                                continue
                            if event.save_result is not None and event.save_result.commit is not None:
                                await self._commit(event.save_result.commit)
                            yield event
                            return
                finally:
                    self._answering = False
        raise ChatStreamError(self._texts.connection_broke.format(url=self.name))

    async def stop(self) -> bool:
        if not self._answering:
            return False
        try:
            await self._request_json("POST", "/chat_stream/stop", {})
        except ChatStreamError:  # the caller closes the connection instead
            return False
        return True

    async def clear(self) -> bool:
        return bool((await self._request_json("POST", "/clear_context", {})).get("success"))

    def check(self, params: ParamOverrides) -> None:
        pass  # only the server knows its limits

    async def get_system(self) -> str:
        return self._system

    async def set_system(self, text: str) -> None:
        if not await self._allows_system_prompt():
            raise ChatStreamError(self._texts.server_sets_system)
        self._system = text

    async def save(self) -> ExportedConversation:
        history = await self._request_json("GET", "/history")
        try:
            saved = ExportedConversation.model_validate({"messages": history.get("messages")})
            return saved.model_copy(update={"system": self._system}) if self._system else saved
        except ValueError:
            raise self._not_a_server("no history") from None

    async def load(self, saved: ExportedConversation) -> None:
        body = {"messages": saved.model_dump(exclude_unset=True)["messages"]}
        await self._request_json("POST", "/import", body)
        self._system = saved.system if saved.system and await self._allows_system_prompt() else ""

    async def _allows_system_prompt(self) -> bool:
        try:
            return bool((await self._request_json("GET", "/ui_config")).get("system_prompt"))
        except ChatStreamError:  # a server without a page, or of an older version
            return False

    async def _commit(self, token: str) -> None:
        with suppress(ChatStreamError):  # the process that answered also stores the turn
            await self._request_json("POST", "/commit", {"commit": token})

    async def _request_json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        with self._translate_errors():
            async with self._request(method, path, body, accept="application/json") as response:
                await self._check(response, "application/json")
                return json_object(await response.text())

    def _request(self, method: str, path: str, body: dict[str, Any] | None, *, accept: str) -> Any:
        url = self._url.joinpath(path.lstrip("/"))
        return self._session.request(method, url, json=body, headers={"Accept": accept}, allow_redirects=False)

    async def _check(self, response: aiohttp.ClientResponse, media_type: str) -> None:
        """Raise ChatStreamError unless the response has status 200 and ``media_type``."""
        if response.status == 200 and response.content_type == media_type:
            return
        if response.status == 200:
            raise self._not_a_server(response.content_type)
        try:
            refusal = json_object(await response.text())
            detail = str(refusal["detail"])
        except (KeyError, ValueError):
            raise self._not_a_server(f"HTTP {response.status} {response.reason or ''}".rstrip()) from None
        self._answer_elsewhere = refusal.get("error") == AnswerElsewhere.code
        seconds = response.headers.get("Retry-After", "")
        raise Unavailable(detail, int(seconds)) if seconds.isdecimal() else ChatStreamError(detail)

    def _not_a_server(self, reason: str) -> ChatStreamError:
        return ChatStreamError(self._texts.not_a_server.format(url=self.name, reason=reason))

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except aiohttp.ClientConnectorError as error:
            sentence = self._texts.cannot_connect.format(url=self.name, reason=os_error_reason(error))
            raise ChatStreamError(sentence) from None
        except (LookupError, TypeError, ValueError) as error:
            raise self._not_a_server(one_line(str(error) or type(error).__name__, 80)) from None
        except (aiohttp.ClientError, HttpProcessingError, OSError):
            raise ChatStreamError(self._texts.connection_broke.format(url=self.name)) from None


def _base_url(url: str) -> URL:
    """Return the URL of the server. Raise ValueError if ``url`` is invalid."""
    try:
        parsed = URL(url)
        is_valid = parsed.host is not None and parsed.port is not None
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError(f"{url} is not a URL such as http://127.0.0.1:8080.")
    return URL(url.removesuffix("/chat_stream")).with_query(None).with_fragment(None)


def _parse_event(name: str, data: dict[str, Any]) -> Event:
    """Parse an event. Raise ValueError, LookupError or TypeError for an unknown or invalid event."""
    match name:
        case "delta":
            return Text(str(data["text"]))
        case "thinking":
            return Thinking(str(data["text"]))
        case "queued":
            return Queued(int(data["position"]))
        case "start":
            return Started()
        case "done":
            usage = _parse_usage(data["usage"])
            timing = Timing(*(data["timing"][field] for field in Timing._fields))
            return Ended(data["finish_reason"], usage, timing, _save_result(data))
        case "error":
            return Failed(ChatStreamError(str(data["error"]["detail"])), _save_result(data))
    raise ValueError(f"unknown event {name!r}")


def _parse_usage(data: dict[str, Any]) -> Usage:
    thinking_tokens = data.get("thinking_tokens", 0)  # absent from older servers
    return Usage(data["prompt_tokens"], data["cached_tokens"], data["completion_tokens"], thinking_tokens)


def _save_result(data: dict[str, Any]) -> SaveResult:
    """Parse how the server saved the conversation; its turns remain there."""
    commit = data.get("commit")  # if cookies store the conversations
    dropped, stored = int(data.get("dropped_turns", 0)), data.get("stored", True) is True
    return SaveResult(Conversation(), dropped, stored, None if commit is None else str(commit))
