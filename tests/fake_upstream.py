"""A scriptable OpenAI-compatible server: fast, deterministic (see :mod:`tests.fake_answers`), and faulty on demand.

In a test: ``async with FakeUpstream(words=30) as upstream: upstream.faults.append(Fault("reset")); use(upstream.url)``.
As a process, which prints its URL: ``python -m tests.fake_upstream --port N --settings '{"words": 30}'``.
``POST /fake {"settings": {...}, "faults": [{...}]}`` changes either, and ``GET /fake`` returns the :attr:`state`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple, Self

import uvloop
from aiohttp import web

from tests.fake_answers import prompt_ids
from tests.fake_faults import REFUSALS, Broken, Fault, Refused, Settings, error
from tests.fake_response import Answer

__all__ = ["FakeUpstream", "Fault", "Settings"]


class ReceivedRequest(NamedTuple):
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class FakeUpstream:
    """A running server.

    url: its address. It stays the same after :meth:`close` and another :meth:`start`.
    requests: all requests to completion and tokenize endpoints, oldest first.
    running, most_running: current and maximum number of requests that are answered at a time.
    disconnects: monotonic times at which clients closed connections before the end of their responses.
    misfits: number of requests to continue an answer that is not this server's.
    words_sent: number of words of all answers.
    """

    def __init__(self, *faults: Fault, port: int = 0, **settings: Any) -> None:
        self.faults, self.settings, self.port = list(faults), Settings(**settings), port
        self.requests: list[ReceivedRequest] = []
        self.running = self.most_running = self.misfits = self.words_sent = 0
        self.disconnects: list[float] = []
        self._prefixes: set[int] = set()
        self._slot_free = asyncio.Condition()
        self._closing = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state(self) -> dict[str, Any]:
        names = ("running", "most_running", "misfits", "words_sent", "disconnects")
        return {name: getattr(self, name) for name in names} | {"requests": len(self.requests)}

    async def start(self) -> None:
        """Listen at the port of before, at first at any free one."""
        app = web.Application(client_max_size=1 << 30)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.get("/props", self._props),
                web.post("/v1/chat/completions", self._complete),
                web.post("/v1/completions", self._complete),
                web.post("/tokenize", self._tokenize),
                web.get("/fake", self._read_state),
                web.post("/fake", self._change),
            ]
        )
        self._closing = False
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await self.listen()

    async def listen(self) -> None:
        """Accept connections, again after :meth:`refuse`."""
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=4096, reuse_address=True)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def refuse(self) -> None:
        """Refuse new connections; those that exist continue."""
        await self._site.stop()

    async def close(self) -> None:
        """Stop, and cut all connections."""
        self._closing = True
        await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self.settings.model, "object": "model", "created": 0, "owned_by": self.settings.owned_by}
        if self.settings.owned_by != "llamacpp":
            model |= {"root": self.settings.model, "max_model_len": self.settings.max_model_len}
        return web.json_response({"object": "list", "data": [model]})

    async def _props(self, request: web.Request) -> web.Response:
        return web.json_response({"default_generation_settings": {"n_ctx": self.settings.max_model_len}})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._receive(request)
        ids = prompt_ids(body["messages"] if "messages" in body else body["prompt"])
        return web.json_response({"count": len(ids), "max_model_len": self.settings.max_model_len, "tokens": ids})

    async def _read_state(self, request: web.Request) -> web.Response:
        return web.json_response(self.state | {"settings": asdict(self.settings)})

    async def _change(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.settings = replace(self.settings, **body.get("settings", {}))
        self.faults += [Fault(**fault) for fault in body.get("faults", [])]
        return web.json_response(self.state)

    async def _receive(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.requests.append(ReceivedRequest(request.path, dict(request.headers), body))
        return body

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await self._receive(request)
        answer = Answer(self, request, body, self._fault_of(body))
        try:
            async with self._slot():
                return await answer.send()
        except Refused as refusal:
            status, json_body, headers = REFUSALS.get(refusal.args[0]) or (
                400, error(refusal.args[0], "BadRequestError", 400), {})  # fmt: skip
            return web.json_response(json_body, status=status, headers=headers)
        except Broken:
            return answer.response
        except (asyncio.CancelledError, ConnectionError):
            if not self._closing:
                self.disconnects.append(time.monotonic())
            raise

    def _fault_of(self, body: dict[str, Any]) -> Fault | None:
        """Return the first fault that hits a request, and count it."""
        text = json.dumps(body, ensure_ascii=False)
        for fault in self.faults:
            if fault.match in text:
                fault.times -= 1
                if fault.times == 0:
                    self.faults.remove(fault)
                return fault
        return None

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        async with self._slot_free:
            while self.settings.slots is not None and self.running >= self.settings.slots:
                if not self.settings.queue:
                    raise Refused("busy_retry_after")
                await self._slot_free.wait()
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            yield
        finally:
            self.running -= 1
            async with self._slot_free:
                self._slot_free.notify()

    def remember(self, ids: Sequence[int]) -> int:
        """Add token ids to the prefix cache. Return how many at their beginning were in it."""
        cached, prefix = 0, 0
        for position, token_id in enumerate(ids):
            prefix = hash((prefix, token_id))
            if prefix in self._prefixes and cached == position:
                cached += 1
            self._prefixes.add(prefix)
        return cached


async def serve(port: int, settings: dict[str, Any]) -> None:
    async with FakeUpstream(port=port, **settings) as upstream:
        print(upstream.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON object of Settings")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.port, options.settings))


if __name__ == "__main__":
    main()
