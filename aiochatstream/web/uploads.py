"""Request bodies while they arrive: bounded in time, in bytes each, and in bytes all together."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from aiochatstream.errors import (
    BadRequest,
    ChatStreamError,
    RequestTimeout,
    TooLarge,
    TooManyRequests,
    UnsupportedMediaType,
)

TOTAL_BYTES = 64 << 20
"""Bytes of all bodies that are arriving, at least two of the maximum length."""

SMALL_BYTES = 16 << 10
"""Bodies up to this size are never refused for the sake of others: an open connection alone needs about as much."""

LONG_BYTES, LONG_BYTES_PER_SECOND = 1 << 20, 64 << 10
"""A body that is longer than the first has one more second for each of the second."""

WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's name of each encoding that is decoded."""


@dataclass(eq=False)
class Upload:
    """One body that is arriving.

    refusal: the error that ends it, if its deadline passes or is moved up.
    """

    deadline: asyncio.Timeout
    refusal: ChatStreamError
    size: int = 0

    def refuse(self, error: ChatStreamError) -> None:
        """End it with ``error`` instead of waiting for the rest."""
        if not self.deadline.expired():
            self.refusal = error
            self.deadline.reschedule(asyncio.get_running_loop().time())


class Uploads:
    """All bodies that are arriving at one server.

    :param seconds: time that a body has to arrive.
    :param total_bytes: bytes of all of them; above it the body that began first is refused.
    """

    def __init__(self, seconds: float, total_bytes: int) -> None:
        self._seconds, self._total_bytes = seconds, total_bytes
        self._arriving: dict[Upload, None] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._arriving)

    async def read(self, request: web.Request, max_bytes: int) -> bytes:
        """Return the body of ``request``, decompressed.

        Raises BadRequest, TooLarge, UnsupportedMediaType, RequestTimeout, TooManyRequests, or what :meth:`refuse` says.
        """
        if not request.body_exists:
            return b""
        encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
        is_decoded = request.content.total_compressed_bytes is not None  # aiohttp does it, unless it is told not to
        if not is_decoded and encoding != "identity" and encoding not in WINDOW_BITS:
            raise UnsupportedMediaType(f"Content-Encoding: must be gzip, deflate or absent, not {encoding[:40]!r}.")
        if (request.content_length or 0) > max_bytes:
            raise _too_large(max_bytes)
        try:
            body = await self._receive(request, max_bytes)
        except (HttpProcessingError, web.RequestPayloadError):
            request.content.feed_eof()  # aiohttp would read on, and log the same error with its traceback
            raise _malformed() from None
        if is_decoded or encoding == "identity" or not body:
            return body
        return await asyncio.to_thread(decompress, body, encoding, max_bytes)

    def refuse(self, error: ChatStreamError) -> None:
        """End all that are arriving with ``error``."""
        for upload in self._arriving:
            upload.refuse(error)

    async def _receive(self, request: web.Request, max_bytes: int) -> bytes:
        begin = asyncio.get_running_loop().time()
        late = RequestTimeout(f"The body did not arrive within {self._seconds:g} seconds.")
        upload = Upload(asyncio.timeout_at(begin + self._seconds), late)
        chunks: list[bytes] = []  # holds all of them: the traceback of a refusal keeps this frame for a while
        try:
            async with upload.deadline:
                self._arriving[upload] = None
                while not chunks or chunks[-1]:
                    chunks.append(await request.content.readany())
                    upload.size += len(chunks[-1])
                    self.bytes += len(chunks[-1])
                    if upload.size > max_bytes:
                        raise _too_large(max_bytes)
                    if upload.size > LONG_BYTES and upload.refusal is late and not upload.deadline.expired():
                        more = (upload.size - LONG_BYTES) / LONG_BYTES_PER_SECOND
                        upload.deadline.reschedule(begin + self._seconds + more)
                    self._make_room()
            return b"".join(chunks)
        except TimeoutError:
            raise upload.refusal from None
        finally:
            chunks.clear()
            del self._arriving[upload]
            self.bytes -= upload.size

    def _make_room(self) -> None:
        """Refuse the bodies that began first until what remains is within the total."""
        over = self.bytes - self._total_bytes
        for upload in self._arriving:
            if over <= 0:
                return
            if upload.size > SMALL_BYTES:
                upload.refuse(TooManyRequests("Too many request bodies are arriving at once. Send again."))
                over -= upload.size


def decompress(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return ``data`` decoded. Raises BadRequest, and TooLarge as soon as it is more than ``max_bytes``."""
    bits = WINDOW_BITS[encoding]
    if encoding == "deflate" and data[0] & 0x0F != zlib.DEFLATED:
        bits = -bits  # without zlib's header, as some clients send it
    decoder = zlib.decompressobj(bits)
    try:
        body = decoder.decompress(data, max_bytes + 1)
    except zlib.error:
        raise _malformed() from None
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    if not decoder.eof or decoder.unused_data:
        raise _malformed()
    return body


def _malformed() -> BadRequest:
    return BadRequest("The body does not arrive as its headers say.")


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is too large: at most {max_bytes} bytes are read.")
