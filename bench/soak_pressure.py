"""Clients with fixed prompts, whose answers must be the same with little memory for keys and values."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import aiohttp
from checks import Check

from aiochatstream.sse import EventParser

CONTEXT = 512
"""Maximum tokens of prompt and answer together."""
MEMORY_CONTEXTS = 4
"""Size of the memory in whole contexts."""
ABORTS = 0.3
"""Share of the requests whose clients disconnect during the answer."""
SHORT_PROMPTS, CONVERSATIONS, TURNS, DOCUMENTS = 8, 3, 4, 4
DOCUMENT_ANSWER = 32
"""Tokens of the answer to a document, which fills the context together with it."""
OWNER = "soak"
"""Salt of all prompts: they share what is cached of them."""
TIMEOUT = aiohttp.ClientTimeout(120)
GAUGE = re.compile(r"^aiochatstream_(\w+) (\S+)$", re.MULTILINE)
CACHE_GAUGES = ("kv_cache_used_tokens", "kv_cache_free_tokens", "prefix_cache_tokens")


@dataclass(frozen=True)
class FixedPrompt:
    """A prompt and its answer, as token ids."""

    ids: list[int]
    answer: list[int]


@dataclass
class Reply:
    """Tokens of a response, and its error; an empty one for a complete response."""

    ids: list[int]
    error: str = ""
    refused: bool = False


class Pressure:
    """Fixed prompts, the comparison of their answers, and the gauges of the memory."""

    def __init__(self, rng: random.Random) -> None:
        self.prompts: list[FixedPrompt] = []
        self.answers: Counter[str] = Counter()
        """Number of answers by their result."""
        self.wrong: list[str] = []
        self.peaks: Counter[str] = Counter()
        """Highest values of the gauges."""
        self.last: dict[str, float] = {}
        """Last values of the gauges."""
        self.cache_tokens = 0.0
        """Size of the memory in tokens."""
        self._random = rng

    async def read_expected(self, url: str) -> None:
        """Get the answers of a server without pressure, one at a time: to short prompts, to the turns of conversations,
        each of which continues the turn before, and to documents that fill the context and begin alike.

        Raise RuntimeError if it does not answer.
        """
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:

            async def add(ids: list[int], count: int) -> list[int]:
                reply = await request(session, url, ids, count)
                if reply.error or len(reply.ids) != count:
                    raise RuntimeError(f"The server without pressure does not answer: {reply.error or reply.ids}.")
                self.prompts.append(FixedPrompt(ids, reply.ids))
                return ids + reply.ids

            for _ in range(SHORT_PROMPTS):
                await add(self._ids(self._random.randint(8, 60)), self._random.randint(16, 48))
            for _ in range(CONVERSATIONS):
                history: list[int] = []
                for _ in range(TURNS):
                    history = await add(history + self._ids(self._random.randint(40, 60)), 24)
            head = self._ids(CONTEXT // 2)
            for _ in range(DOCUMENTS):
                await add(head + self._ids(CONTEXT - DOCUMENT_ANSWER - len(head)), DOCUMENT_ANSWER)

    async def ask(self, session: aiohttp.ClientSession, url: str, number: int | None = None) -> str:
        """Send a prompt, compare the answer, and return the result.

        Some clients disconnect; the tokens that they have received must be the first of the answer.

        :param number: number of the prompt, whose client does not disconnect; None for any.
        """
        aborts = number is None and self._random.random() < ABORTS
        number = self._random.randrange(len(self.prompts)) if number is None else number
        prompt = self.prompts[number]
        count = len(prompt.answer)
        limit = self._random.randrange(count) if aborts else count
        reply = await request(session, url, prompt.ids, count, limit)
        if reply.refused:
            result = "refused"
        elif reply.error:
            result = "failed"
            self.wrong.append(f"prompt {number}: {reply.error}")
        elif reply.ids != prompt.answer[: len(reply.ids)] or len(reply.ids) < limit:
            result = "different"
            self.wrong.append(f"prompt {number}: {reply.ids} instead of {prompt.answer}")
        else:
            result = "exact" if len(reply.ids) == count else "exact, aborted"
        self.answers[result] += 1
        return result

    def record_gauges(self, metrics: str) -> None:
        """Record the values of /metrics."""
        values = {name: float(value) for name, value in GAUGE.findall(metrics)}
        if not all(name in values for name in CACHE_GAUGES):
            return
        self.last = values
        self.cache_tokens = self.cache_tokens or sum(values[name] for name in CACHE_GAUGES)
        self.peaks |= Counter({name: int(value) for name, value in values.items()})

    def checks(self) -> list[Check]:
        used, free, cached = (self.last.get(name) for name in CACHE_GAUGES)
        compared = self.answers["exact"] + self.answers["exact, aborted"] + self.answers["different"]
        lost = None if free is None or cached is None else abs(self.cache_tokens - free - cached)
        return [
            Check("answers", len(self.wrong) if compared else None, 0, self.wrong[0] if self.wrong else "", True),
            Check("memory in use", used, 0, "tokens", required=True),
            Check("memory lost", lost, 0, "tokens", required=True),
            Check("no pressure", int(not self.peaks["num_requests_waiting_for_memory"]), 0, "no request waited for it"),
        ]

    def to_json(self) -> dict[str, Any]:
        return {"answers": self.answers, "peaks": self.peaks, "cache_tokens": self.cache_tokens, "last": self.last}

    def render(self) -> str:
        answers = ", ".join(f"{count} {result}" for result, count in self.answers.most_common())
        used, waiting = (self.peaks[name] for name in ("kv_cache_used_tokens", "num_requests_waiting_for_memory"))
        return (
            f"answers to fixed prompts: {answers}\n"
            f"memory of {self.cache_tokens:.0f} tokens: at most {used} in use, {waiting} requests waiting for it, "
            f"{self.peaks['batch_size']} rows at once, {self.peaks['prefix_cache_hits_total']} prompts from the cache"
        )

    def _ids(self, length: int) -> list[int]:
        return [self._random.randint(3, 258) for _ in range(length)]  # the bytes of ByT5


async def request(
    session: aiohttp.ClientSession, url: str, ids: list[int], count: int, limit: int | None = None
) -> Reply:
    """Return the greedy answer of ``count`` tokens to ``ids``; disconnect after ``limit`` of them."""
    body = {
        "prompt": ids,
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "cache_salt": OWNER,
    }
    reply = Reply([])
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            return Reply([], f"HTTP {response.status}: {(await response.text())[:200]}", response.status in (429, 503))
        parser = EventParser()
        async for chunk in response.content.iter_any():
            for _, data in parser.feed(chunk):
                if data == "[DONE]":
                    return reply
                event = json.loads(data)
                if "error" in event:
                    reply.error = str(event["error"])[:200]
                    return reply
                for choice in event["choices"]:
                    reply.ids += choice.get("token_ids") or []
                if limit is not None and limit <= len(reply.ids) < count:
                    response.close()
                    return reply
    reply.error = "the stream is not complete"
    return reply
