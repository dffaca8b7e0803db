"""Feedback of users on answers, for the application's callback."""

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
"""Ratings of one answer: users may change a rating, or add a comment to it."""

MAX_ANSWERS = 10_000
"""Maximum number of answers whose ratings are counted; the least recently rated are forgotten."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """A user's rating of one answer.

    is_like: True for like, False for dislike, None for neither.
    form_data: any JSON that the page sends with the rating.
    prompt: the answer's prompt as text.
    target_message: the answer.
    generation_params: the user's current parameters.
    """

    is_like: bool | None
    form_data: Any
    prompt: str
    target_message_id: str
    target_message: str
    generation_params: dict[str, Any]


O_BINARY = getattr(os, "O_BINARY", 0)
"""Flag for Windows, which otherwise changes line ends."""

FeedbackCallback = Callable[[web.Request, Feedback], object]
"""The application's callback for feedback: a plain function, which runs on the event loop, or a coroutine function. An
exception results in a 500, so that a user never sees success for feedback that was lost."""


class FeedbackFile:
    """A callback that appends feedback to a file as JSON Lines, with the ``time`` in seconds since 1970.

    The file contains users' texts and is created readable for its owner only. An answer that is rated again has several
    lines; the last line counts.

    :param max_bytes: maximum size of the file. Feedback beyond it is refused with 503.
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
        # a single write in append mode is atomic, so worker processes can share the file
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | O_BINARY, 0o600)
        try:
            if os.fstat(file).st_size + len(line) > self._max_bytes:
                if not self._is_full:
                    logger.error("%s is full: feedback is refused until the file is moved.", self._path)
                self._is_full = True
                raise StoreUnavailable("The feedback file is full.", retry_after=3600)
            self._is_full = False
            written = os.write(file, line)
        finally:
            os.close(file)
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


class Ratings:
    """Rating counts of recently rated answers, which limit the ratings of each answer."""

    def __init__(self) -> None:
        self._ratings: OrderedDict[Hashable, tuple[int, FeedbackRequest | None]] = OrderedDict()

    def count(self, answer: Hashable, rating: FeedbackRequest) -> bool:
        """Count ``rating`` for ``answer``; return False if it equals the answer's last rating.

        Raises InvalidValue above :data:`MAX_RATINGS`.
        """
        times, last = self._ratings.pop(answer, (0, None))
        is_new = rating != last
        self._ratings[answer] = (min(times + is_new, MAX_RATINGS), rating if times < MAX_RATINGS else last)
        if len(self._ratings) > MAX_ANSWERS:
            self._ratings.popitem(last=False)
        if is_new and times == MAX_RATINGS:
            raise InvalidValue(f"message_id: must be of an answer with fewer than {MAX_RATINGS} ratings.")
        return is_new

    def forget(self, answer: Hashable) -> None:
        """Allow the last rating of ``answer`` again, because the callback failed."""
        if answer in self._ratings:
            self._ratings[answer] = (self._ratings[answer][0], None)
