"""Requests that go to a server as they are, and responses that go to the client as they are."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from aiochatstream.engines.base import Delta
from aiochatstream.engines.upstream.client import (
    FAILURES,
    FINISH_REASONS,
    RequestFailed,
    ServerFailed,
    close_response,
    raise_error_response,
    raise_refusal,
    read_error,
    refusal_of,
    report_failure,
    send,
)
from aiochatstream.engines.upstream.dialects import read_error_event
from aiochatstream.engines.upstream.event_filter import BROKEN_REASONS, CHUNK_MARKS, RESPONSE_MARKS, EventFilter
from aiochatstream.engines.upstream.json_object import JsonObject
from aiochatstream.engines.upstream.request_body import CHAT_PATH, TEXT_PATH
from aiochatstream.engines.upstream.server import UpstreamServer, UpstreamSlot
from aiochatstream.engines.upstream.stream_chunks import ErrorEvent
from aiochatstream.errors import BadRequest, EngineFailed, NotFound

EVENTS, JSON = "text/event-stream", "application/json"

WHOLE_BYTES = 1 << 20
"""Maximum size of a body without events that is received as a whole before its first byte is sent, so that another
server can answer if this one fails meanwhile."""

TAIL_BYTES = 1 << 14
"""Size of the end of a body in which the usage is searched."""

_USAGE = re.compile(rb'"usage": ?(?=\{)')
_FINISH_REASON = re.compile(rb'"finish_reason": ?"(\w+)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayRequest:
    """A client's request.

    path: path at the server, for example ``/v1/chat/completions``.
    body: body as the client sent it.
    model: name of the model for the client, which also replaces the server's name in the response.
    stream: True if the client requests a stream.
    answers: number of answers in the response, each of which uses a slot.
    owner, affinity: see :class:`~aiochatstream.Prompt`.
    """

    path: str
    body: JsonObject
    model: str
    stream: bool
    answers: int = 1
    owner: str = ""
    affinity: str = ""

    @property
    def adds_usage(self) -> bool:
        """True if the usage must be requested, and removed from the response, for the metrics of this server."""
        if not self.stream or self.path not in (CHAT_PATH, TEXT_PATH):
            return False
        options = self.body.members.get("stream_options")
        return options is None or (isinstance(options, dict) and options.get("include_usage") is not True)

    @property
    def salt_owner(self) -> str:
        """Owner of the prompts at the server; empty if the client separates them itself."""
        return "" if self.body.members.get("cache_salt") else self.owner

    def members_for(self, server: UpstreamServer) -> dict[str, Any]:
        """Return the members of the body that differ at ``server``."""
        members: dict[str, Any] = {"model": server.model}
        if self.adds_usage:
            members["stream_options"] = {**(self.body.members.get("stream_options") or {}), "include_usage": True}
        return members


class RefusedRequest(BadRequest):
    """Request that a server refuses because of its contents.

    :param response_status: status of the server's response.
    :param body: body of it, a JSON object.
    """

    def __init__(self, response_status: int, body: bytes) -> None:
        super().__init__("The model's server does not accept this request.")
        self.response_status, self.body = response_status, body


class Receiver(Protocol):
    """Receiver of a response, which passes it to the client."""

    @property
    def has_begun(self) -> bool:
        """True after the first :meth:`begin`: no other response can follow."""

    async def begin(self, content_type: str, size: int | None) -> None:
        """Begin the response.

        :param size: number of bytes of the body; None if it is unknown.
        """

    async def write(self, data: bytes, on_wait: Callable[[], None]) -> None:
        """Pass on a part of the body. Errors of the client cancel the task.

        :param on_wait: called if the client is slow, before waiting for it.
        """


class RelayAttempt:
    """The attempt of one server to answer a request.

    :param slot: slot at the server.
    :param first_output: maximum seconds until the first text of a stream.
    """

    def __init__(self, slot: UpstreamSlot, request: RelayRequest, receiver: Receiver, first_output: float) -> None:
        self._slot, self._request, self._receiver = slot, request, receiver
        self._first_output = first_output
        self._names = list(_model_members(slot.server.model, request.model))

    async def run(self, headers: Mapping[str, str], members: Mapping[str, Any]) -> Delta:
        """Send the request, pass the response on, and return its usage. Cancelling closes the connection.

        :param headers: headers of the request.
        :param members: members of the body that differ from the client's.

        Raise :class:`ServerFailed` and :class:`ServerBusy` after they have been reported to the slot,
        :class:`RefusedRequest`, and the errors of :func:`raise_refusal`.
        """
        response: aiohttp.ClientResponse | None = None
        whole = False
        try:
            with self._extra_slots():
                async with asyncio.timeout(self._first_output if self._request.stream else None) as deadline:
                    body = self._request.body.with_members(members)
                    response = await send(self._slot, self._request.path, headers, data=body)
                    if response.status != 200:
                        await self._refuse(response)
                    self._slot.heard(output=False)
                    if response.content_type == EVENTS:
                        usage = await self._pass_events(response, deadline)
                    else:
                        deadline.reschedule(None)
                        usage = await self._pass_body(response)
            whole = True
            return usage
        except ErrorEvent as event:
            raise_refusal(self._slot, read_error_event(event.body), "an error event", event.body, None)
        except RequestFailed:
            raise
        except ServerFailed as failure:
            self._slot.failed(str(failure))
            raise
        except FAILURES as error:
            if deadline.expired():  # it may be slow only for this request, and is not down
                raise ServerFailed("no text in time") from None
            raise report_failure(self._slot, error) from None  # the error's text has the server's address
        finally:
            if response is not None:
                await close_response(response, whole=whole)

    @contextmanager
    def _extra_slots(self) -> Iterator[None]:
        """Count the further answers of the request at the server."""
        slots = [self._slot.server.new_slot() for _ in range(self._request.answers - 1)]
        for slot in slots:
            slot.pause()  # only the first slot reports silence
        try:
            yield
        finally:
            for slot in slots:
                slot.release()

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        """Raise the error of a response with an error status."""
        text, error = await read_error(response)
        is_completion = self._request.path in (CHAT_PATH, TEXT_PATH)
        if response.status == 404 and not is_completion:
            raise NotFound("The model's server has no such endpoint.")
        is_refusal = refusal_of(response.status, error) in ("request", "too_long")
        if is_refusal and isinstance(error, dict) and not self._slot.server.session.is_exposed_by(text):
            raise RefusedRequest(response.status, self._rename(text))
        raise_error_response(self._slot, response, error)

    async def _pass_events(self, response: aiohttp.ClientResponse, deadline: asyncio.Timeout) -> Delta:
        """Pass a stream on, and return its usage. Events before the first text are held until then."""
        content, slot = response.content, self._slot
        marks = CHUNK_MARKS if self._request.path in (CHAT_PATH, TEXT_PATH) else RESPONSE_MARKS
        events = EventFilter(drops_usage=self._request.adds_usage, marks=marks)
        held = b""
        while not events.done:
            data = await content.readany()
            if not data:
                raise ServerFailed("its stream ended early.")
            data = events.feed(data)
            slot.heard(output=events.has_output)
            if not self._receiver.has_begun:
                held += data
                if not (events.has_output or events.done):
                    if events.error is not None:
                        raise events.error
                    continue
                data = held
                deadline.reschedule(None)
                await self._receiver.begin(EVENTS, None)
            if data:
                await self._write(self._rename(data))
            if events.error is not None:
                raise events.error
        return usage_delta(events.usage, events.finish_reason)

    async def _pass_body(self, response: aiohttp.ClientResponse) -> Delta:
        """Pass a body without events on, and return its usage."""
        if response.content_type != JSON:
            self._slot.misconfigured(f"it sends {response.content_type[:60]!r}.")
            raise EngineFailed("The model's server has sent no answer; see the server's log.")
        content = response.content
        body, ended = b"", False
        while len(body) < WHOLE_BYTES and not ended:
            data = await content.readany()
            self._slot.heard()
            body, ended = body + data, not data
        body = self._rename(body)
        reason = _FINISH_REASON.search(body)
        if reason is not None and reason[1].decode() in BROKEN_REASONS:
            raise ServerFailed("its answer has broken off.")
        await self._receiver.begin(JSON, len(body) if ended else None)
        data, tail = body, b""
        while data:
            await self._write(data)
            tail = (tail + data)[-TAIL_BYTES:]
            data = await content.readany()
            self._slot.heard()
        return usage_delta(find_usage(tail), reason[1].decode() if reason is not None else "")

    async def _write(self, data: bytes) -> None:
        slot = self._slot
        await self._receiver.write(data, slot.pause)  # a server that waits for a slow client is not hung
        if slot.paused:
            slot.heard(output=False)

    def _rename(self, data: bytes) -> bytes:
        """Return ``data`` with the client's name of the model instead of the server's."""
        for before, after in self._names:
            data = data.replace(before, after)
        return data


def _model_members(name: str, new_name: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield each spelling of the member ``model`` with ``name``, and the one that replaces it."""
    if name == new_name:
        return
    new_text = json.dumps(new_name, ensure_ascii=False).encode()
    for text in {json.dumps(name, ensure_ascii=False), json.dumps(name)}:
        for key in (b'"model":', b'"model": '):
            yield key + text.encode(), key + new_text


def find_usage(tail: bytes) -> dict[str, Any] | None:
    """Return the last usage object in the end of a body; None if there is none."""
    positions = [match.end() for match in _USAGE.finditer(tail)]
    if not positions:
        return None
    try:
        usage, _ = json.JSONDecoder().raw_decode(tail[positions[-1] :].decode(errors="replace"))
    except ValueError:
        return None
    return usage if isinstance(usage, dict) else None


def usage_delta(usage: Mapping[str, Any] | None, finish_reason: str) -> Delta:
    """Return the counts of a usage object of any endpoint, and a finish reason, as the last delta of an answer."""
    usage = usage or {}
    prompt, completion = (
        usage.get(f"{kind}_tokens_details") or {}
        for kind in (("prompt", "completion") if "prompt_tokens" in usage else ("input", "output"))
    )
    return Delta(
        tokens=_count(usage, "completion_tokens", "output_tokens"),
        prompt_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        cached_tokens=_count(prompt, "cached_tokens"),
        thinking_tokens=_count(completion, "reasoning_tokens"),
        finish_reason=FINISH_REASONS.get(finish_reason, "stop"),
    )


def _count(counts: Any, *names: str) -> int:
    """Return the first valid count among ``names``; 0 if there is none."""
    values = [counts.get(name) for name in names] if isinstance(counts, Mapping) else []
    return next((value for value in values if isinstance(value, int) and value >= 0), 0)
