"""Engines on fake upstreams, and their answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiochatstream import Delta, GenerationParams, Prompt
from aiochatstream.engines.upstream import Upstream, UpstreamEngine
from aiochatstream.engines.upstream.server import UpstreamServer

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where is the sea?"}]
PROMPT = Prompt(MESSAGES, [], owner="account:anna", affinity="key")
GREEDY = GenerationParams(temperature=0.0)


@dataclass
class CollectedAnswer:
    """The deltas of an answer, together."""

    deltas: list[Delta] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def thinking(self) -> str:
        return "".join(delta.thinking for delta in self.deltas)

    @property
    def token_ids(self) -> list[int]:
        return [token_id for delta in self.deltas for token_id in delta.token_ids]

    @property
    def usage(self) -> tuple[int, int]:
        """Prompt and completion tokens."""
        return sum(delta.prompt_tokens for delta in self.deltas), sum(delta.token_count for delta in self.deltas)

    @property
    def finish_reasons(self) -> list[str]:
        return [delta.finish_reason for delta in self.deltas if delta.finish_reason is not None]


@asynccontextmanager
async def running_engine(
    upstreams: str | Upstream | Sequence[str | Upstream], **options: Any
) -> AsyncIterator[UpstreamEngine]:
    engine = UpstreamEngine(upstreams, **options)
    try:
        await engine.load(None, None)
        yield engine
    finally:
        await engine.close()


async def collect(
    engine: UpstreamEngine,
    prompt: Prompt = PROMPT,
    params: GenerationParams = GREEDY,
    answer: CollectedAnswer | None = None,
) -> CollectedAnswer:
    """Return the answer to a prompt.

    :param answer: receives the deltas; they stay if the answer fails.
    """
    answer = answer or CollectedAnswer()
    async with aclosing(engine.generate(prompt, params)) as deltas:
        async for delta in deltas:
            answer.deltas.append(delta)
    return answer


def servers_of(engine: UpstreamEngine) -> dict[str, UpstreamServer]:
    """Return all servers of an engine by URL, those that are down too."""
    return engine._pool._servers
