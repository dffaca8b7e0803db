"""Reception of request bodies, with limits on time, on the size of each, and on their total size."""

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
"""Minimum limit on the bytes of all arriving bodies; the limit also allows two bodies of the maximum length."""

SMALL_BYTES = 16 << 10
"""Maximum size of a body that is never refused to make room: an open connection alone needs about as much memory."""

LONG_BYTES, LONG_BYTES_PER_SECOND = 1 << 20, 64 << 10
"""Bodies longer than LONG_BYTES have one more second for each further LONG_BYTES_PER_SECOND."""

WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's ``wbits`` for each supported encoding."""


@dataclass(eq=False)
class Upload:
    """An arriving body.

    refusal: error to raise when the deadline passes.
    """

    deadline: asyncio.Timeout
    refusal: ChatStreamError
    size: int = 0

    def refuse(self, error: ChatStreamError) -> None:
        """End the reception with ``error`` instead of waiting for the rest."""
        if not self.deadline.expired():
            self.refusal = error
            self.deadline.reschedule(asyncio.get_running_loop().time())


class Uploads:
    """All arriving bodies of a server.

    :param seconds: time limit of a body.
    :param total_bytes: limit on the bytes of all bodies; above it, the oldest body is refused.
    """

    def __init__(self, seconds: float, total_bytes: int) -> None:
        self._seconds, self._total_bytes = seconds, total_bytes
        self._arriving: dict[Upload, None] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._arriving)

    async def read(self, request: web.Request, max_bytes: int) -> bytes:
        """Return the body of ``request``, decompressed.

        Raises BadRequest, TooLarge, UnsupportedMediaType, RequestTimeout, TooManyRequests, or the error of
        :meth:`refuse`.
        """
        if not request.body_exists:
            return b""
        encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
        is_decoded = request.content.total_compressed_bytes is not None  # by aiohttp, unless the app disables it
        if not is_decoded and encoding != "identity" and encoding not in WINDOW_BITS:
            raise UnsupportedMediaType(f"Content-Encoding: must be gzip, deflate or absent, not {encoding[:40]!r}.")
        if (request.content_length or 0) > max_bytes:
            raise _too_large(max_bytes)
        try:
            body = await self._receive(request, max_bytes)
        except (HttpProcessingError, web.RequestPayloadError):
            request.content.feed_eof()  # else aiohttp reads on, and logs the same error with its traceback
            raise _malformed() from None
        if is_decoded or encoding == "identity" or not body:
            return body
        return await asyncio.to_thread(decompress, body, encoding, max_bytes)

    def refuse(self, error: ChatStreamError) -> None:
        """End the reception of all arriving bodies with ``error``."""
        for upload in self._arriving:
            upload.refuse(error)

    async def _receive(self, request: web.Request, max_bytes: int) -> bytes:
        begin = asyncio.get_running_loop().time()
        late = RequestTimeout(f"The body did not arrive within {self._seconds:g} seconds.")
        upload = Upload(asyncio.timeout_at(begin + self._seconds), late)
        chunks: list[bytes] = []  # cleared below: the traceback of a refusal keeps this frame for a while
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
        """Refuse the oldest bodies until the rest is within the total."""
        excess = self.bytes - self._total_bytes
        for upload in self._arriving:
            if excess <= 0:
                return
            if upload.size > SMALL_BYTES:
                upload.refuse(TooManyRequests("Too many request bodies are arriving. Try again."))
                excess -= upload.size


def decompress(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return the decompressed ``data``. Raises BadRequest, or TooLarge if the result exceeds ``max_bytes``."""
    bits = WINDOW_BITS[encoding]
    if encoding == "deflate" and data[0] & 0x0F != zlib.DEFLATED:
        bits = -bits  # raw deflate without zlib's header, which some clients send
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
    return BadRequest("The body does not match its headers.")


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is too large: at most {max_bytes} bytes are accepted.")
