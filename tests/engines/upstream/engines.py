"""Engines on fake upstreams, and their answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from aiochatstream import Delta, GenerationParams, Prompt
from aiochatstream.engines.upstream import Upstream, UpstreamEngine
from aiochatstream.engines.upstream.server import UpstreamServer
from tests.fake_faults import Fault
from tests.fake_upstream import FakeUpstream

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where is the sea?"}]
PROMPT = Prompt(MESSAGES, [], owner="account:anna", affinity="key")
GREEDY = GenerationParams(temperature=0.0)
WORDS = 12
KEY = "sk-secret-7"


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


class TwoUpstreams:
    """An engine on two upstreams that have their faults in common: each fault hits one of them."""

    def __init__(self, first: FakeUpstream, second: FakeUpstream, engine: UpstreamEngine) -> None:
        self.first, self.second, self.engine = first, second, engine
        second.faults = first.faults

    @property
    def requests(self) -> int:
        return len(self.first.requests) + len(self.second.requests)

    @property
    def outages(self) -> int:
        return sum(server.outages for server in servers_of(self.engine).values())


@asynccontextmanager
async def two_upstreams(
    *faults: Fault, owner: str = "vllm", max_model_len: int = 100_000, **options: Any
) -> AsyncIterator[TwoUpstreams]:
    """Yield two upstreams and their engine.

    :param faults: each hits one request, to either upstream.
    :param options: of the engine.
    """
    settings: dict[str, Any] = {"words": WORDS, "owned_by": owner, "max_model_len": max_model_len}
    async with (
        FakeUpstream(**settings) as first,
        FakeUpstream(**settings) as second,
        running_engine([Upstream(first.url, api_key=KEY), Upstream(second.url, api_key=KEY)], **options) as engine,
    ):
        first.faults += [replace(fault) for fault in faults]
        yield TwoUpstreams(first, second, engine)
