"""Like or dislike: what a user says of an answer, on its way to the application."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from aiochatstream.errors import InvalidValue, StoreUnavailable
from aiochatstream.web.request_models import FeedbackRequest

logger = logging.getLogger(__name__)

MAX_RATINGS = 10
"""Ratings of one answer: its user may change their mind, and add a comment."""

MAX_ANSWERS = 10_000
"""Answers whose ratings are counted. Those that were not rated for longest are forgotten."""


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

    The file holds what people wrote: it is made for its owner alone. An answer that is rated again has one more line;
    its last one counts.

    :param max_bytes: maximum length of the file. Feedback beyond it is refused with 503.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = 128 << 20) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes: must be a number of bytes from 1, not {max_bytes!r}.")
        self._path, self._max_bytes = Path(path), max_bytes
        self._writing = asyncio.Lock()
        self._is_full = False

    async def __call__(self, request: web.Request, feedback: Feedback) -> None:
        """Append ``feedback``. Raises :class:`~aiochatstream.errors.StoreUnavailable` when the file is full."""
        entry = {"time": round(time.time(), 3), **asdict(feedback)}
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
        async with self._writing:
            await asyncio.to_thread(self._append, line.encode(errors="surrogatepass"))

    def _append(self, line: bytes) -> None:
        # one write to a file that is opened for appending: workers of several processes may share it
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | O_BINARY, 0o600)
        try:
            if os.fstat(file).st_size + len(line) > self._max_bytes:
                if not self._is_full:
                    logger.error("%s is full: feedback is refused until it is moved away.", self._path)
                self._is_full = True
                raise StoreUnavailable("The file for feedback is full.", retry_after=3600)
            self._is_full = False
            written = os.write(file, line)
        finally:
            os.close(file)
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


class Ratings:
    """The ratings of answers that were rated lately, so that one answer cannot be rated without end."""

    def __init__(self) -> None:
        self._ratings: OrderedDict[Hashable, tuple[int, FeedbackRequest | None]] = OrderedDict()

    def count(self, answer: Hashable, rating: FeedbackRequest) -> bool:
        """Count ``rating`` as one of ``answer``; return False if it is the same as the last one.

        Raises InvalidValue above :data:`MAX_RATINGS`.
        """
        times, last = self._ratings.pop(answer, (0, None))
        is_new = rating != last
        self._ratings[answer] = (min(times + is_new, MAX_RATINGS), rating if times < MAX_RATINGS else last)
        if len(self._ratings) > MAX_ANSWERS:
            self._ratings.popitem(last=False)
        if is_new and times == MAX_RATINGS:
            raise InvalidValue(f"message_id: must be of an answer that was rated less than {MAX_RATINGS} times.")
        return is_new

    def forget(self, answer: Hashable) -> None:
        """Let the last rating of ``answer``, which was not kept, come again."""
        if answer in self._ratings:
            self._ratings[answer] = (self._ratings[answer][0], None)
