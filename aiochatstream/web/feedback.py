"""Like or dislike: what a user says of an answer, on its way to the application."""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aiochatstream.errors import NotFound
from aiochatstream.web.errors import answers_errors_as_chatstream
from aiochatstream.web.json import dumps, json_response
from aiochatstream.web.schemas import FeedbackRequest, read_body

if TYPE_CHECKING:
    from aiochatstream.chat_stream import ChatStream


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a user says of one answer.

    is_like: None where it is neither like nor dislike.
    form_data: whatever JSON the page sends with it.
    prompt: what the model was told, as text.
    target_message: the answer.
    generation_params: the user's, as they are now.
    """

    is_like: bool | None
    form_data: Any
    prompt: str
    target_message_id: str
    target_message: str
    generation_params: dict[str, Any]


O_BINARY = getattr(os, "O_BINARY", 0)
"""Windows would write another new line."""

FeedbackCallback = Callable[[web.Request, Feedback], object]
"""What an application gives to be told of feedback: a plain function, which runs on the event loop, or a coroutine
function. What it raises is answered with a 500: the user is not told that something was kept which was not."""


class FeedbackFile:
    """A callback for feedback that appends it to a file, a line of JSON each, with the ``time`` in seconds since 1970.

    The file holds what people wrote: it is made for its owner alone.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._writing = asyncio.Lock()

    async def __call__(self, request: web.Request, feedback: Feedback) -> None:
        """Append ``feedback``."""
        line = dumps({"time": round(time.time(), 3), **asdict(feedback)}) + "\n"
        async with self._writing:
            await asyncio.to_thread(self._append, line.encode(errors="surrogatepass"))

    def _append(self, line: bytes) -> None:
        # one write to a file that is opened for appending: workers of several processes may share it
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | O_BINARY, 0o600)
        try:
            written = os.write(file, line)
        finally:
            os.close(file)
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


@answers_errors_as_chatstream
async def set_feedback(server: ChatStream, request: web.Request) -> web.StreamResponse:
    """``POST /set_feedback``: hand a like or dislike of one answer to the application."""
    asked = await read_body(request, FeedbackRequest, max_bytes=server.limits.max_request_bytes)
    user = await server.user_session(request)
    conversation = await user.load(asked.conversation)
    at = next((at for at, turn in enumerate(conversation.turns) if turn.message_id == asked.message_id), None)
    if at is None:
        raise NotFound(f"message_id: the conversation {asked.conversation!r} has no answer {asked.message_id!r}.")
    turn = conversation.turns[at]
    callback = server.on_feedback_received
    if callback is not None:
        told = conversation.drop_newest(len(conversation.turns) - at)
        feedback = Feedback(
            is_like=asked.is_like,
            form_data=asked.form_data,
            prompt=await server.prompt_text(told, turn.user),
            target_message_id=turn.message_id,
            target_message=turn.answer,
            generation_params=server.override(server.user_params(user)).model_dump(mode="json"),
        )
        result = callback(request, feedback)
        if inspect.isawaitable(result):
            await result
    return json_response({"success": True, "message": "success", "target_message_id": turn.message_id})
