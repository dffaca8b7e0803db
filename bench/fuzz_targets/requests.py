"""Malformed requests to every endpoint: no 500, no hang, and all gauges at zero afterwards."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import aiohttp_session
from aiohttp import web

from aiochatstream import ChatStream, Limits, MemoryStorage, ScriptedEngine
from aiochatstream.web.openai.routes import ENDPOINTS as OPENAI_ENDPOINTS
from aiochatstream.web.routes import ENDPOINTS
from aiochatstream.web.server_log import shorten_client_errors
from fuzz_targets import Findings, rounds

PATIENCE = 15.0
"""Seconds until a request counts as hung. The server's own timeouts are shorter than one second."""

REQUESTS = 20
"""Concurrent requests of a round."""

PATHS = [
    (endpoint.route.__name__.upper(), prefix + endpoint.path)
    for prefix, endpoints in (("", ENDPOINTS), ("/v1", OPENAI_ENDPOINTS))
    for endpoint in endpoints.values()
]
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "G\x00T", "")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "a", "\0", "\ud800", "\uffff", "日本語", "😀" * 50, "a" * 5_000, "../..", "main", "null", "[DONE]"),
    *([], {}, [[]], [{}], {"": ""}, [None] * 50, {"role": "user", "content": "hi"}, {"type": "json_object"}),
)
FIELDS = (
    *("user_input", "conversation", "system", "params", "regenerate", "continue", "edit_message_id", "if_turn"),
    *("messages", "commit", "message_id", "is_like", "form_data", "model", "prompt", "input", "stream", "n", "seed"),
    *("max_tokens", "max_new_tokens", "temperature", "top_p", "top_k", "top_k_value", "stop", "logit_bias", "logprobs"),
    *("top_logprobs", "response_format", "tools", "tool_choice", "stream_options", "echo", "suffix", "instructions"),
    *("role", "content", "type", "function", "name", "parameters", "json_schema", "schema", "state", "text"),
)
BODIES: tuple[Any, ...] = (
    {"user_input": "hi"},
    {"messages": [{"role": "user", "content": "hi"}]},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    {"prompt": "hi"},
    {"input": "hi"},
    {"message_id": "x", "is_like": True, "form_data": {"a": 1}},
    {"temperature": 1, "top_k_value": 3},
)
HEADERS = (
    *("Content-Type: application/json", "Content-Type: text/plain", "Content-Type: ;;\xff", "Content-Type: "),
    *("Accept: text/event-stream", "Accept: application/json", "Accept: ;q=,,*/*;q=nan", "Accept-Encoding: gzip;q=0"),
    *("Cookie: AIOHTTP_SESSION=\xff\xfe", 'Cookie: ="; ;;=', "Cookie: AIOHTTP_SESSION=" + "a" * 4_000),
    *("Authorization: Bearer \xff", "Authorization: Basic", "Origin: null", "Origin: http://[", "Host: [", "Host: "),
    *("Sec-Fetch-Site: cross-site", "X-FastSession-Skip: skip", "X-ChatStream-Auth-Header: \xff"),
    *("X-ChatStream-Wire: cumulative", "X-ChatStream-Wire: cumulative-eos", "X-ChatStream-Wire: \xff"),
    *("Content-Encoding: gzip", "Content-Encoding: br", "Content-Encoding: deflate", "Content-Encoding: \xff"),
    *("Expect: 100-continue", "Expect: x", "Upgrade: websocket", "Connection: upgrade", "If-None-Match: \xff,,W/"),
    *("Transfer-Encoding: chunked", "Transfer-Encoding: x", "Content-Length: -1", "Content-Length: 99999999999"),
    *("X-Forwarded-For: \xff", "Range: bytes=9-1", "X: " + "a" * 9_000, "\x00: 1", ": ", "novalue"),
)
QUERIES = ("", "?", "?conversation=main", "?conversation=%00", "?conversation=%ff&if_turn=-1", "?if_turn=1e9", "?%zz=%")


def fuzz(seconds: float, seed: int) -> Findings:
    """Send malformed requests to a server that answers without a model."""
    return asyncio.run(_fuzz(seconds, seed))


async def _fuzz(seconds: float, seed: int) -> Findings:
    findings = Findings()
    unexpected: list[str] = []
    handler = TracebackHandler(unexpected)
    logging.getLogger().addHandler(handler)
    logging.getLogger("aiohttp.server").addFilter(shorten_client_errors)
    try:
        async with _served(auto_decompress=True) as decoding, _served(auto_decompress=False) as plain:
            for number in rounds(seconds, seed):
                rng = random.Random(number)  # noqa: S311 - not security-relevant
                port, chat_stream = rng.choice((decoding, plain))
                requests = [_request(rng) for _ in range(REQUESTS)]
                sent = [_send(port, random.Random(rng.random()), request) for request in requests]  # noqa: S311
                sent += [_send_valid(port, random.Random(rng.random())) for _ in range(REQUESTS)]  # noqa: S311
                findings.tried += len(sent)
                faults = [fault for fault in await asyncio.gather(*sent) if fault]
                faults += await _nonzero_gauges(port, chat_stream)
                faults += [*dict.fromkeys(unexpected)]
                unexpected.clear()
                findings.faults += [f"seed {number}: {fault}" for fault in faults]
                if len(findings.faults) > 20:
                    break
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger("aiohttp.server").removeFilter(shorten_client_errors)
    return findings


class TracebackHandler(logging.Handler):
    """Collector of log records with a traceback."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        """Collect ``record`` if it has a traceback."""
        if record.exc_info:
            self._faults.append(f"log: {record.getMessage()} {record.exc_info[1]!r}"[:400])


@asynccontextmanager
async def _served(*, auto_decompress: bool) -> AsyncIterator[tuple[int, ChatStream]]:
    chat_stream = ChatStream(
        engine=ScriptedEngine("echo", time_per_token_sec=0),
        max_queue_size=2 * REQUESTS,
        limits=Limits(body_timeout=0.5, write_timeout=0.5),
        on_feedback=lambda request, feedback: None,
    )
    options = {"auto_decompress": auto_decompress, "keepalive_timeout": 1.0, "lingering_time": 0.2}
    app = web.Application(handler_args=options)
    aiohttp_session.setup(app, MemoryStorage())
    app.add_routes(chat_stream.routes())
    chat_stream.setup(app)
    chat_stream.setup_openai(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await chat_stream.wait_ready()
        yield runner.addresses[0][1], chat_stream
    finally:
        await runner.cleanup()


def _value(rng: random.Random, depth: int = 0) -> Any:
    """Return arbitrary JSON with fields of the endpoints."""
    kind = rng.random()
    if depth > 3 or kind < 0.6:
        return rng.choice(VALUES)
    if kind < 0.8:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(FIELDS): _value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _body(rng: random.Random) -> bytes:
    """Return a valid body with some fields changed; sometimes with bytes changed, or random bytes."""
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.randrange(60))
    if kind < 0.1:
        return rng.choice((b"[", b'{"a":', b"[" * 90_000, b"1" * 5_000, b'"' + b"\\" * 99, b"\xef\xbb\xbf{}"))
    fields = {**rng.choice(BODIES), **{rng.choice(FIELDS): _value(rng) for _ in range(rng.randrange(4))}}
    body = json.dumps(fields).encode()
    if kind < 0.2:
        at = rng.randrange(len(body))
        body = body[:at] + rng.randbytes(rng.randrange(3)) + body[at + rng.randrange(3) :]
    return body


def _request(rng: random.Random) -> bytes:
    """Return the bytes of a request with about one fault."""
    method, path = rng.choice(PATHS)
    if rng.random() < 0.1:
        method = rng.choice(METHODS)
    path = path.split("{")[0] + rng.choice(("", "", "x", "%2f%00", "\xff", "/" * 50)) * ("{" in path)
    version = rng.choice(("1.1", "1.1", "1.1", "1.0", "2.0", "9"))
    body = _body(rng)
    headers = ["Host: x", "Connection: close", *rng.sample(HEADERS, rng.randrange(3))]
    framing: list[Callable[[], tuple[str, bytes]]] = [
        lambda: (f"Content-Length: {len(body)}", body),
        lambda: (f"Content-Length: {len(body) + 1}", body),
        lambda: ("Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
        lambda: ("Transfer-Encoding: chunked", b"%x\r\n%b" % (len(body) + 1, body)),
        lambda: ("Transfer-Encoding: chunked", b"zz\r\n" + body),
        lambda: (f"Content-Encoding: gzip\r\nContent-Length: {len(zipped)}", zipped),
        lambda: ("X: no length", body),
    ]
    zipped = gzip.compress(body)
    length, sent = rng.choices(framing, (8, 1, 2, 1, 1, 2, 1))[0]()
    if not any(header.startswith("Content-Type") for header in headers):
        headers.append("Content-Type: application/json")
    head = "\r\n".join([f"{method} {path}{rng.choice(QUERIES)} HTTP/{version}", *headers, length])
    return head.encode("latin-1", "replace") + b"\r\n\r\n" + sent


async def _send(port: int, rng: random.Random, request: bytes) -> str | None:
    """Send ``request`` in one or two parts and read the response, or disconnect early. Return the fault."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    at = rng.randrange(len(request)) if rng.random() < 0.3 else len(request)
    got = b""
    try:
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                writer.write(request[:at])
                await writer.drain()
                if rng.random() < 0.1:
                    return None  # disconnect
                await asyncio.sleep(0)
                writer.write(request[at:])
                if rng.random() < 0.1:
                    writer.write_eof()
                while chunk := await reader.read(1 << 16):
                    got = (got + chunk)[:200]
    except TimeoutError:
        return f"hung: {request[:400]!r}"
    finally:
        writer.transport.abort()
    status = got.split(b" ", 2)[1] if got.startswith(b"HTTP/") else b"none"
    return f"{status.decode()}: {request[:400]!r}" if status in (b"500", b"504") else None


async def _send_valid(port: int, rng: random.Random) -> str | None:
    """Send a request twice with valid HTTP and with cookies. Return the fault."""
    method, path = rng.choice(PATHS)
    url = f"http://127.0.0.1:{port}{path.split('{')[0]}"
    body = _body(rng)
    headers = {"Content-Type": "application/json", "Accept": rng.choice(("*/*", "text/event-stream"))}
    try:
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
            for _ in range(2):
                async with session.request(method, url, data=body, headers=headers) as response:
                    await response.read()
                if response.status in (500, 504):
                    return f"{response.status}: {method} {path} {body[:400]!r}"
    except TimeoutError:
        return f"hung: {method} {path} {body[:400]!r}"
    except aiohttp.ClientError as error:
        return f"{error!r}: {method} {path} {body[:400]!r}"
    return None


async def _nonzero_gauges(port: int, chat_stream: ChatStream) -> list[str]:
    """Return the gauges that do not return to zero after all clients have disconnected."""
    gauges: dict[str, int] = {}
    for _ in range(int(PATIENCE / 0.05)):
        gauges = {
            "running": chat_stream.admission.running,
            "waiting": chat_stream.admission.waiting,
            "turns": len(chat_stream._turns),
            "uploads": len(chat_stream.uploads),
            "bytes of uploads": chat_stream.uploads.bytes,
            "requests": len(chat_stream.active_requests),
            "watched": len(chat_stream.disconnects),
        }
        if not any(gauges.values()):
            break
        await asyncio.sleep(0.05)
    left = [f"{name}: {count} left" for name, count in gauges.items() if count]
    async with aiohttp.request("GET", f"http://127.0.0.1:{port}/healthz") as response:
        if response.status != 200:
            left.append(f"/healthz: {response.status}")
    return left
