"""A running aiochatstream server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from aiochatstream.bench.asking import connect_error
from aiochatstream.bench.parsing import BadAnswer, EventStream, parse_object, shorten
from aiochatstream.console.backend import Backend
from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.export import ExportedConversation
from aiochatstream.conversations.user import SaveResult
from aiochatstream.errors import AnswerElsewhere, ChatStreamError, Unavailable
from aiochatstream.params import ParamOverrides
from aiochatstream.runtime.events import Ended, Event, Failed, Queued, Started, Text, Timing, Usage
from aiochatstream.texts import Messages

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""A connection on which nothing comes for so long is broken: the server sends something every 15 s."""


class ServerBackend(Backend):
    """Talks with the server at ``url``, as one user: its cookie is kept while the program runs.

    Lives inside an ``async with``, which looks whether the server is there.
    """

    def __init__(self, url: str, messages: Messages) -> None:
        self._url, self._messages = _base(url), messages
        self.name = str(self._url.with_user(None))  # what is shown has no password
        self._answering = False
        self._answer_elsewhere = False
        self._system = ""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # servers by number, too
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS),
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
        if self._answer_elsewhere:  # the sentence that the user has seen announces it
            body["abandon_lost"] = True
        with self._one_sentence_errors():
            async with self._request("POST", "/chat_stream", body, accept="text/event-stream") as response:
                await self._check(response, "text/event-stream")
                self._answering, self._answer_elsewhere = True, False
                try:
                    stream = EventStream()
                    async for data in response.content.iter_any():
                        for name, raw in stream.feed(data):
                            event = _event(name, parse_object(raw))
                            if not isinstance(event, Ended | Failed):
                                yield event
                                continue
                            if event.kept is not None and event.kept.commit is not None:
                                await self._commit(event.kept.commit)
                            yield event
                            return
                finally:
                    self._answering = False
        raise ChatStreamError(self._messages.connection_broke.format(url=self.name))

    async def stop(self) -> bool:
        if not self._answering:
            return False
        try:
            await self._ask("POST", "/chat_stream/stop", {})
        except ChatStreamError:  # the next best thing is to leave
            return False
        return True

    async def clear(self) -> bool:
        return bool((await self._ask("POST", "/clear_context", {})).get("success"))

    def check(self, params: ParamOverrides) -> None:
        """Only the server knows its limits."""

    async def get_system(self) -> str:
        return self._system

    async def set_system(self, text: str) -> None:
        if not await self._lets_users_set_system():
            raise ChatStreamError(self._messages.server_sets_system)
        self._system = text

    async def save(self) -> ExportedConversation:
        history = await self._ask("GET", "/history")
        try:
            saved = ExportedConversation.model_validate({"messages": history.get("messages")})
            return saved.model_copy(update={"system": self._system}) if self._system else saved
        except ValueError:
            raise self._not_a_server("no history") from None

    async def load(self, saved: ExportedConversation) -> None:
        body = {"messages": saved.model_dump(exclude_unset=True)["messages"]}
        await self._ask("POST", "/import", body)
        self._system = saved.system if saved.system and await self._lets_users_set_system() else ""

    async def _lets_users_set_system(self) -> bool:
        try:
            return bool((await self._ask("GET", "/ui_config")).get("system_prompt"))
        except ChatStreamError:  # it has no page, or is older
            return False

    async def _commit(self, token: str) -> None:
        with suppress(ChatStreamError):  # the process that answered keeps the turn, too
            await self._ask("POST", "/commit", {"commit": token})

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        with self._one_sentence_errors():
            async with self._request(method, path, body, accept="application/json") as response:
                await self._check(response, "application/json")
                return parse_object(await response.text())

    def _request(self, method: str, path: str, body: dict[str, Any] | None, *, accept: str) -> Any:
        url = self._url.joinpath(path.lstrip("/"))
        return self._session.request(method, url, json=body, headers={"Accept": accept}, allow_redirects=False)

    async def _check(self, response: aiohttp.ClientResponse, media_type: str) -> None:
        """Raises ChatStreamError unless this is the beginning of an answer."""
        if response.status == 200 and response.content_type == media_type:
            return
        if response.status == 200:
            raise self._not_a_server(response.content_type)
        try:
            refusal = parse_object(await response.text())
            detail = str(refusal["detail"])
        except (BadAnswer, KeyError, ValueError):
            raise self._not_a_server(f"HTTP {response.status} {response.reason or ''}".rstrip()) from None
        self._answer_elsewhere = refusal.get("error") == AnswerElsewhere.code
        seconds = response.headers.get("Retry-After", "")
        raise Unavailable(detail, int(seconds)) if seconds.isdecimal() else ChatStreamError(detail)

    def _not_a_server(self, reason: str) -> ChatStreamError:
        return ChatStreamError(self._messages.not_a_server.format(url=self.name, reason=reason))

    @contextmanager
    def _one_sentence_errors(self) -> Iterator[None]:
        try:
            yield
        except aiohttp.ClientConnectorError as error:
            sentence = self._messages.cannot_connect.format(url=self.name, reason=connect_error(error))
            raise ChatStreamError(sentence) from None
        except (BadAnswer, LookupError, TypeError, ValueError) as error:
            raise self._not_a_server(shorten(str(error) or type(error).__name__, 80)) from None
        except (aiohttp.ClientError, HttpProcessingError, OSError):
            raise ChatStreamError(self._messages.connection_broke.format(url=self.name)) from None


def _base(url: str) -> URL:
    """Raises ValueError for what is no URL."""
    try:
        base = URL(url)
        found = base.host is not None and base.port is not None
    except ValueError:
        found = False
    if not found:
        raise ValueError(f"{url} is not a URL such as http://127.0.0.1:8080.")
    return URL(url.removesuffix("/chat_stream")).with_query(None).with_fragment(None)


def _event(name: str, data: dict[str, Any]) -> Event:
    """An event from the wire. Raises ValueError, LookupError or TypeError for another one."""
    match name:
        case "delta":
            return Text(str(data["text"]))
        case "queued":
            return Queued(int(data["position"]))
        case "start":
            return Started()
        case "done":
            usage = Usage(*(data["usage"][name] for name in Usage._fields))
            timing = Timing(*(data["timing"][name] for name in Timing._fields))
            return Ended(data["finish_reason"], usage, timing, _kept(data))
        case "error":
            return Failed(ChatStreamError(str(data["error"]["detail"])), _kept(data))
    raise ValueError(f"event {name!r}")


def _kept(data: dict[str, Any]) -> SaveResult:
    """What the last event tells of the conversation, which itself stays on the server."""
    commit = data.get("commit")  # where conversations live in cookies
    dropped, stored = int(data.get("dropped_turns", 0)), data.get("stored", True) is True
    return SaveResult(Conversation(), dropped, stored, None if commit is None else str(commit))
