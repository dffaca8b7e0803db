"""Randomly modified session cookies and commit tokens: no server error, no access to another user's conversation."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import aiohttp_session
from aiohttp import web
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, CookieStorage
from fuzz_targets import Findings, rounds, serving

INPUTS_PER_ROUND = 200

HISTORY = b"GET /history HTTP/1.1\r\nHost: localhost\r\nCookie: "

Mutation = Callable[[random.Random, bytes, bytes], bytes]


@dataclass
class CookieUser:
    """A user with a secret message, session cookie and commit token."""

    secret: str
    cookie: bytes
    token: bytes


def fuzz(seconds: float, seed: int) -> Findings:
    """Send modified cookies and tokens to a server that stores conversations in cookies."""
    findings = Findings()
    for number in rounds(seconds, seed):
        asyncio.run(_round(random.Random(number), findings, number))  # noqa: S311
    return findings


async def _round(rng: random.Random, findings: Findings, seed: int) -> None:
    app = web.Application()
    aiohttp_session.setup(app, CookieStorage(Fernet.generate_key()))
    ChatStream(engine=lambda messages, params: iter([messages[-1]["content"]])).add_endpoints(app)
    async with serving(app) as port:
        ann, bob = await _converse(port, "alpha" * rng.randint(1, 300)), await _converse(port, "bravo")
        if b"alpha" not in (await _send(port, HISTORY + ann.cookie))[1]:
            findings.faults.append(f"seed {seed}: the unmodified cookie has no conversation")
        for number in range(INPUTS_PER_ROUND):
            mutation = rng.choice(MUTATIONS)
            cookie = mutation(rng, ann.cookie, bob.cookie)
            if cookie == bob.cookie:  # equal starts make this possible
                continue
            fault = await _history(port, cookie)
            if rng.random() < 0.5:
                token = rng.choice(MUTATIONS)(rng, ann.token, bob.token)
                fault = fault or await _commit(port, ann.cookie, token)
            findings.tried += 1
            if fault is not None:
                findings.faults.append(f"seed {seed}, input {number}, {mutation.__name__}: {fault}")


async def _converse(port: int, secret: str) -> CookieUser:
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        url = f"http://127.0.0.1:{port}"
        token = b""
        async with session.post(
            f"{url}/chat_stream", json={"user_input": secret}, headers={"Accept": "text/event-stream"}
        ) as response:
            for line in (await response.text()).splitlines():
                if line.startswith("data:") and "commit" in line:
                    token = json.loads(line.removeprefix("data:"))["commit"].encode()
        cookie = "; ".join(f"{cookie.key}={cookie.value}" for cookie in jar)
    return CookieUser(secret, cookie.encode(), token)


async def _history(port: int, cookie: bytes) -> str | None:
    """Return the fault of the response to ``GET /history`` with this cookie; None if there is none."""
    status, body = await _send(port, HISTORY + cookie)
    if status >= 500:
        return f"status {status} for the cookie {cookie!r}"
    if b"bravo" in body:
        return f"another user's message for the cookie {cookie!r}"
    return None


async def _commit(port: int, cookie: bytes, token: bytes) -> str | None:
    body = json.dumps({"commit": token.decode("latin-1")}).encode()
    head = b"POST /commit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Cookie: " + cookie + b"\r\nContent-Length: " + str(len(body)).encode()
    status, answer = await _send(port, head, body)
    if status >= 500:
        return f"status {status} for the token {token!r}"
    return f"another user's message for the token {token!r}" if b"bravo" in answer else None


async def _send(port: int, head: bytes, body: bytes = b"") -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head + b"\r\nConnection: close\r\n\r\n" + body)
        answer = await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return 0, b""
    finally:
        writer.close()
    status = answer.split(b" ", 2)[1] if answer.startswith(b"HTTP/1.1 ") else b"0"
    return int(status), answer


def flip(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """Replace a byte by another that is valid in a header."""
    at = rng.randrange(len(text))
    return text[:at] + bytes([rng.choice(HEADER_BYTES)]) + text[at + 1 :]


def cut(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """Delete a part."""
    start = rng.randrange(len(text))
    return text[:start] + text[start + rng.randint(1, 50) :]


def double(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """Repeat the end."""
    start = rng.randrange(len(text))
    return text + text[start:]


def splice(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """Join the start of one text and the end of the other."""
    return text[: rng.randrange(len(text))] + other[rng.randrange(1, len(other)) :]


def garbage(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """Replace the value of the cookie by random bytes."""
    name = text.partition(b"=")[0]
    return name + b"=" + bytes(rng.choice(HEADER_BYTES) for _ in range(rng.randint(0, 3000)))


def both(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """Put a cookie with the same name and a random value before the cookie."""
    return garbage(rng, text, other) + b"; " + text


HEADER_BYTES = [byte for byte in range(32, 256) if byte != 127]
MUTATIONS: list[Mutation] = [flip, cut, double, splice, garbage, both]
