"""Session cookies and commit tokens, changed at random: none is an error of the server, none reads another's words."""

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

INPUTS_A_ROUND = 200

HISTORY = b"GET /history HTTP/1.1\r\nHost: localhost\r\nCookie: "

Mutation = Callable[[random.Random, bytes, bytes], bytes]


@dataclass
class Talker:
    """A user with a secret, and what the browser holds of the conversation."""

    secret: str
    cookie: bytes
    token: bytes


def fuzz(seconds: float, seed: int) -> Findings:
    """Send changed cookies and tokens to a server whose conversations live in cookies."""
    found = Findings()
    for number in rounds(seconds, seed):
        asyncio.run(_round(random.Random(number), found, number))  # noqa: S311
    return found


async def _round(rng: random.Random, found: Findings, seed: int) -> None:
    app = web.Application()
    aiohttp_session.setup(app, CookieStorage(Fernet.generate_key()))
    ChatStream(engine=lambda messages, params: iter([messages[-1]["content"]])).add_endpoints(app)
    async with serving(app) as port:
        ann, bob = await _talk(port, "alpha" * rng.randint(1, 300)), await _talk(port, "bravo")
        if b"alpha" not in (await _send(port, HISTORY + ann.cookie))[1]:
            found.faults.append(f"seed {seed}: the unchanged cookie has no conversation")
        for number in range(INPUTS_A_ROUND):
            mutation = rng.choice(MUTATIONS)
            cookie = mutation(rng, ann.cookie, bob.cookie)
            if cookie == bob.cookie:  # begins alike, so that a splice may give the other cookie itself
                continue
            fault = await _history(port, cookie)
            if rng.random() < 0.5:
                token = rng.choice(MUTATIONS)(rng, ann.token, bob.token)
                fault = fault or await _commit(port, ann.cookie, token)
            found.tried += 1
            if fault is not None:
                found.faults.append(f"seed {seed}, input {number}, {mutation.__name__}: {fault}")


async def _talk(port: int, secret: str) -> Talker:
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
    return Talker(secret, cookie.encode(), token)


async def _history(port: int, cookie: bytes) -> str | None:
    """Return what is wrong with the answer to ``GET /history`` with this cookie."""
    status, body = await _send(port, HISTORY + cookie)
    if status >= 500:
        return f"status {status} for the cookie {cookie!r}"
    if b"bravo" in body:
        return f"another user's words for the cookie {cookie!r}"
    return None


async def _commit(port: int, cookie: bytes, token: bytes) -> str | None:
    body = json.dumps({"commit": token.decode("latin-1")}).encode()
    head = b"POST /commit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Cookie: " + cookie + b"\r\nContent-Length: " + str(len(body)).encode()
    status, answer = await _send(port, head, body)
    if status >= 500:
        return f"status {status} for the token {token!r}"
    return f"another user's words for the token {token!r}" if b"bravo" in answer else None


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
    """Replace one byte by one that may stand in a header."""
    at = rng.randrange(len(text))
    return text[:at] + bytes([rng.choice(HEADER_BYTES)]) + text[at + 1 :]


def cut(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """Leave out a piece."""
    start = rng.randrange(len(text))
    return text[:start] + text[start + rng.randint(1, 50) :]


def double(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """Repeat a piece, up to the whole."""
    start = rng.randrange(len(text))
    return text + text[start:]


def splice(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """Begin with one and continue with the other."""
    return text[: rng.randrange(len(text))] + other[rng.randrange(1, len(other)) :]


def garbage(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """Send bytes that nobody sealed, under the name of the cookie."""
    name = text.partition(b"=")[0]
    return name + b"=" + bytes(rng.choice(HEADER_BYTES) for _ in range(rng.randint(0, 3000)))


def both(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """Send garbage under the same name before the cookie."""
    return garbage(rng, text, other) + b"; " + text


HEADER_BYTES = [byte for byte in range(32, 256) if byte != 127]
MUTATIONS: list[Mutation] = [flip, cut, double, splice, garbage, both]
