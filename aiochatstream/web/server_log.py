"""aiohttp's log of requests that are not HTTP, which anybody can send by the thousand."""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError

MAX_CHARS = 200


def shorten_malformed(record: logging.LogRecord) -> bool:
    """Filter for the logger ``aiohttp.server``: log a malformed request in one line, without its traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        reason = " ".join(error.message.split())[:MAX_CHARS]
        record.msg, record.args, record.exc_info = "%s: %s", (record.getMessage(), reason), None
    return True
