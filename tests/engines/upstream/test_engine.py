"""Tests for answers of upstreams, without failures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiochatstream import GenerationParams, Prompt
from aiochatstream.engines.upstream import Upstream, UpstreamEngine, hops
from aiochatstream.errors import InvalidValue, UpstreamUnavailable
from tests.engines.upstream.engines import GREEDY, MESSAGES, PROMPT, collect, running_engine
from tests.fake_answers import answer_text, prompt_ids
from tests.fake_upstream import FakeUpstream
from tests.helpers import until

OWNERS = ("vllm", "sglang", "aiochatstream", "llamacpp", "somebody")
WORDS = 20


@pytest.mark.parametrize("split_bytes", [None, 1, 7])
@pytest.mark.parametrize("owner", OWNERS)
async def test_the_answer_is_the_upstreams_and_the_usage_is_exact(owner: str, split_bytes: int | None) -> None:
    async with (
        FakeUpstream(owned_by=owner, words=WORDS, split_bytes=split_bytes) as upstream,
        running_engine(upstream.url) as engine,
    ):
        answer = await collect(engine)
    assert answer.text == answer_text(MESSAGES, WORDS)
    assert answer.usage == (len(prompt_ids(MESSAGES)), WORDS)
    assert answer.finish_reasons == ["stop"]


async def test_heartbeats_are_no_text() -> None:
    async with (
        FakeUpstream(words=3, first_token_s=0.05, heartbeat_s=0.005) as upstream,
        running_engine(upstream.url) as engine,
    ):
        answer = await collect(engine)
    assert answer.text == answer_text(MESSAGES, 3)
    assert all(delta.text or delta.finish_reason for delta in answer.deltas)


async def test_the_maximum_length() -> None:
    async with FakeUpstream(words=WORDS) as upstream, running_engine(upstream.url) as engine:
        answer = await collect(engine, params=GenerationParams(max_new_tokens=7))
    assert answer.text == answer_text(MESSAGES, WORDS)[: len(answer.text)]
    assert (answer.usage[1], answer.finish_reasons) == (7, ["length"])


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_thoughts_come_before_the_text(field: str) -> None:
    async with (
        FakeUpstream(words=5, reasoning=4, reasoning_field=field) as upstream,
        running_engine(upstream.url) as engine,
    ):
        answer = await collect(engine)
        cut = await collect(engine, params=GenerationParams(max_new_tokens=3))
    assert answer.text == answer_text(MESSAGES, 5)
    assert answer.thinking
    assert sum(delta.thinking_tokens for delta in answer.deltas) == 4
    assert answer.usage[1] == 9
    assert (cut.text, cut.finish_reasons) == ("", ["thinking_length"])


async def test_a_text_is_completed() -> None:
    prompt = Prompt([{"role": "user", "content": "Once upon"}], [], continued=True, chat=False)
    async with FakeUpstream(words=4) as upstream, running_engine(upstream.url) as engine:
        answer = await collect(engine, prompt)
    assert answer.text == answer_text("Once upon", 4)
    assert upstream.requests[0].path == "/v1/completions"


async def test_an_open_answer_is_continued() -> None:
    beginning = answer_text(MESSAGES, 3)
    prompt = Prompt([*MESSAGES, {"role": "assistant", "content": beginning}], [], continued=True)
    async with FakeUpstream(words=6) as upstream, running_engine(upstream.url) as engine:
        answer = await collect(engine, prompt)
    assert beginning + answer.text == answer_text(MESSAGES, 6)


async def test_stop_strings_beyond_the_upstreams_maximum() -> None:
    text = answer_text(MESSAGES, WORDS)
    stops = ("nowhere", "at", "all", "ever", text[50:53])
    async with FakeUpstream(words=WORDS, owned_by="somebody") as upstream, running_engine(upstream.url) as engine:
        answer = await collect(engine, params=GenerationParams(stop=stops))
    assert upstream.requests[0].body["stop"] == list(stops[:4])
    assert answer.text == text[: text.find(stops[4])]
    assert answer.finish_reasons == ["stop"]


async def test_a_request_has_only_the_headers_that_are_named() -> None:
    async with (
        FakeUpstream() as upstream,
        running_engine(Upstream(upstream.url, api_key="sk-1"), affinity_header="X-SMG-Routing-Key") as engine,
    ):
        await collect(engine)
        hops.receive("0123456789abcdef", engine.server_id)
        await collect(engine)
    first, second = (request.headers for request in upstream.requests)
    assert first["Authorization"] == "Bearer sk-1"
    assert first["X-SMG-Routing-Key"] == "key"
    assert first[hops.HEADER] == engine.server_id
    assert second[hops.HEADER] == f"0123456789abcdef, {engine.server_id}"
    ours = {"Authorization", "X-SMG-Routing-Key", hops.HEADER}
    assert first.keys() - ours == {"Accept", "Accept-Encoding", "Content-Length", "Content-Type", "Host", "User-Agent"}


@pytest.mark.parametrize(("share", "salted"), [(False, True), (True, False)])
async def test_cached_prompts_of_users_are_separate_unless_shared(share: bool, salted: bool) -> None:
    async with FakeUpstream() as upstream, running_engine(upstream.url, share_prefixes=share) as engine:
        await collect(engine)
        await collect(engine, Prompt(MESSAGES, [], owner="account:ben"))
    salts = [request.body.get("cache_salt") for request in upstream.requests]
    assert ("anna" not in str(salts), len(set(salts)) == 2, None not in salts) == (True, salted, salted)


class WordTokenizer:
    """A tokenizer without a vocabulary, for prompts of token ids."""

    def __len__(self) -> int:
        return 2_000_000

    def decode(self, token_ids: list[int]) -> str:
        raise NotImplementedError


@pytest.mark.parametrize("tokenizer", [WordTokenizer(), lambda: WordTokenizer()])
async def test_a_tokenizer_makes_prompts_of_token_ids(tokenizer: Any) -> None:
    async with (
        FakeUpstream(words=5, owned_by="vllm") as upstream,
        running_engine(upstream.url, tokenizer=tokenizer) as engine,
    ):
        assert isinstance(engine.tokenizer, WordTokenizer)
        answer = await collect(engine, Prompt(MESSAGES, [3, 1, 4]))
    assert answer.text == answer_text([3, 1, 4], 5)
    assert len(answer.token_ids) == 5
    assert upstream.requests[0].body["prompt"] == [3, 1, 4]


async def test_unsupported_parameters_are_refused_before_the_answer() -> None:
    async with FakeUpstream(owned_by="somebody") as upstream, running_engine(upstream.url) as engine:
        engine.check(GREEDY)
        for params in (GenerationParams(top_k=3), GenerationParams(logprobs=1), GenerationParams(thinking="low")):
            with pytest.raises(InvalidValue):
                engine.check(params)


async def test_what_the_upstreams_are_is_what_the_engine_is() -> None:
    async with (
        FakeUpstream(model="big", max_model_len=500) as first,
        FakeUpstream(model="big", max_model_len=300) as second,
        running_engine([first.url, Upstream(second.url, slots=3)], slots=5) as engine,
    ):
        assert engine.describe() == {"model": "big", "servers": "2 of 2 up"}
        assert (engine.capacity, engine.max_context_len, engine.unavailable()) == (8, 300, None)


async def test_an_engine_starts_without_upstreams_and_is_available_later() -> None:
    upstream = FakeUpstream(words=3)
    await upstream.start()
    await upstream.close()
    async with running_engine(upstream.url) as engine:
        changes: list[int | None] = []
        engine.on_capacity = lambda: changes.append(engine.capacity)
        assert isinstance(engine.unavailable(), UpstreamUnavailable)
        assert engine.describe()["model"] == "unknown"
        answer = asyncio.create_task(collect(engine))
        await upstream.start()
        assert (await answer).text == answer_text(MESSAGES, 3)
        assert (engine.unavailable(), changes) == (None, [64])
        await upstream.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_text": 0}, "first_text: must be a number of seconds"),
        ({"stall": -1}, "stall: must be"),
        ({"connect": 1e6}, "connect: must be"),
        ({"tries": 0}, "tries: must be a whole number from 1 to 100"),
        ({"slots": 0}, "slots"),
    ],
)
def test_bad_options_name_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UpstreamEngine("http://127.0.0.1:1", **options)


async def test_the_connection_is_used_again() -> None:
    async with FakeUpstream(words=2) as upstream, running_engine(upstream.url) as engine:
        await collect(engine)
        connections = engine._pool.servers[0].session._session.connector
        assert connections is not None
        await until(lambda: sum(map(len, connections._conns.values())) == 1)
        await collect(engine)
        assert len(connections._acquired) == 0
    assert len(upstream.requests) == 2


async def test_prompts_of_one_conversation_go_to_one_server() -> None:
    async with (
        FakeUpstream(words=2) as first,
        FakeUpstream(words=2) as second,
        running_engine([first.url, second.url]) as engine,
    ):
        for _ in range(6):
            await collect(engine, PROMPT)
    assert sorted([len(first.requests), len(second.requests)]) == [0, 6]
