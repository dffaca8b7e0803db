"""A filter for aiohttp's log of invalid requests and disconnects, which any client can cause by the thousand."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

MAX_CHARS = 200


def shorten_client_errors(record: logging.LogRecord) -> bool:
    """Filter for the logger ``aiohttp.server``: log a client's error in one line, without a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionError):
        reason = " ".join(str(error).split())[:MAX_CHARS]
        record.msg, record.args, record.exc_info = "%s: %s", (record.getMessage(), reason), None
    return True
