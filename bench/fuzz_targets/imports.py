"""Imported conversations: the server rejects them with a reason, or exports them unchanged."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import aiohttp
import aiohttp_session
from aiohttp import web

from aiochatstream import ChatStream, MemoryStorage
from fuzz_targets import Findings, rounds, serving

INPUTS_PER_ROUND = 100
REFUSALS = {400, 413, 422}

ALPHABETS = [
    "ab \n",
    "日本語。",
    "\x00\x01\x1b\x7f\u2028\ufeff\ufffd",
    "🍣\u200d👧",
    "<|im_end|>\\\"'&%",
    "\ud83d a",
]


def fuzz(seconds: float, seed: int) -> Findings:
    """Import random conversations into a server, export them, and import the export."""
    findings = Findings()
    for number in rounds(seconds, seed):
        asyncio.run(_round(random.Random(number), findings, number))  # noqa: S311
    return findings


async def _round(rng: random.Random, findings: Findings, seed: int) -> None:
    app = web.Application()
    aiohttp_session.setup(app, MemoryStorage())
    ChatStream(engine=lambda messages, params: iter(["x"])).add_endpoints(app)
    jar = aiohttp.CookieJar(unsafe=True)
    async with serving(app) as port, aiohttp.ClientSession(cookie_jar=jar) as session:
        for number in range(INPUTS_PER_ROUND):
            body = _body(rng)
            findings.tried += 1
            if fault := await _fault(session, f"http://127.0.0.1:{port}", body):
                findings.faults.append(f"seed {seed}, input {number}: {fault} for {body[:300]!r}")


async def _fault(session: aiohttp.ClientSession, url: str, body: str) -> str | None:
    """Return the fault of the responses to an import of ``body``; None if there is none."""
    status, answer = await _post(session, url, body)
    if status in REFUSALS:
        return None if json.loads(answer).get("detail") else "a refusal without a reason"
    if status != 200:
        return f"status {status}"
    exported = await _export(session, url)
    imported = [(message["role"], message["content"]) for message in json.loads(body)["messages"]]
    if [(message["role"], message["content"]) for message in json.loads(exported)["messages"]] != imported:
        return "another conversation in the export"
    status, _ = await _post(session, url, exported)
    if status != 200:
        return f"status {status} for the export"
    return None if await _export(session, url) == exported else "another export after its import"


async def _post(session: aiohttp.ClientSession, url: str, body: str) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"}
    async with session.post(f"{url}/import", data=body.encode(errors="surrogatepass"), headers=headers) as response:
        return response.status, await response.text()


async def _export(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/export") as response:
        return await response.text()


def _body(rng: random.Random) -> str:
    """Return an import as JSON: mostly valid, otherwise with an arbitrary value in one place."""
    messages: list[Any] = []
    for _ in range(rng.choice([0, 1, 1, 2, 5, 50])):
        messages += [{"role": "user", "content": _text(rng)}, _answer(rng)]
    body: dict[str, Any] = {"messages": messages}
    if rng.random() < 0.5:
        _spoil(rng, body)
    return json.dumps(body, ensure_ascii=rng.random() < 0.5)


def _answer(rng: random.Random) -> dict[str, Any]:
    answer = {"role": "assistant", "content": _text(rng)}
    if rng.random() < 0.5:
        answer["message_id"] = rng.choice(["a", "日本", "x" * 300, f"{rng.random()}"])
    if rng.random() < 0.5:
        answer["state"] = rng.choice(["complete", "interrupted"])
    return answer


def _spoil(rng: random.Random, body: dict[str, Any]) -> None:
    """Replace one value by an arbitrary one."""
    places: list[tuple[Any, Any]] = [(body, name) for name in (*body, "conversation", "if_turn", "system", "other")]
    for message in body["messages"]:
        places += [(message, name) for name in (*message, "state", "message_id", "tool_calls")]
    container, name = rng.choice(places)
    container[name] = _anything(rng, 4)


def _anything(rng: random.Random, depth: int) -> Any:
    simple = [None, True, -1, 2**70, 1.5, 1e308, "", "main", "../x", _text(rng)]
    if depth == 0 or rng.random() < 0.6:
        return rng.choice(simple)
    values = [_anything(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    return values if rng.random() < 0.5 else {_text(rng)[:20]: value for value in values}


def _text(rng: random.Random) -> str:
    alphabet = rng.choice(ALPHABETS)
    return "".join(rng.choice(alphabet) for _ in range(rng.choice([0, 1, 5, 40, 4000])))
