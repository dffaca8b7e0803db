"""Tests for conversations that exceed the context of the upstream."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aiochatstream import ChatStream, GenerationParams, Limits, Prompt
from aiochatstream.engines.upstream import UpstreamEngine
from aiochatstream.errors import ContextLengthExceeded
from tests.engines.upstream.engines import WORDS as FAKE_WORDS
from tests.engines.upstream.engines import collect, running_engine, two_upstreams
from tests.fake_answers import answer_text
from tests.fake_faults import Fault
from tests.fake_upstream import FakeUpstream
from tests.helpers import ClientOf, StartServer

SYSTEM = {"role": "system", "content": "Be kind."}
PARAMS = GenerationParams(max_new_tokens=30)
WORDS = 8


def conversation(turns: int, words: int = 20) -> Prompt:
    """Return a conversation; its messages have ``words`` and a role, each a token of the fake upstream."""
    messages = [SYSTEM]
    for number in range(turns):
        messages.append({"role": "user", "content": f"{number} " + "word " * (words - 2) + "?"})
        messages.append({"role": "assistant", "content": f"{number} " + "word " * (words - 2) + "!"})
    return Prompt([*messages, {"role": "user", "content": "And now?"}], [], may_shorten=True)


@pytest.mark.parametrize("owner", ["vllm", "sglang", "somebody"])
async def test_the_oldest_turns_are_dropped_before_the_upstream_refuses(owner: str) -> None:
    prompt = conversation(40)
    async with (
        FakeUpstream(owned_by=owner, max_model_len=400, words=WORDS) as upstream,
        running_engine(upstream.url) as engine,
    ):
        answer = await collect(engine, prompt, PARAMS)
        messages = upstream.requests[-1].body["messages"]
    assert messages[0] == SYSTEM
    assert messages[1:] == prompt.messages[-len(messages) + 1 :]
    assert messages[1]["role"] == "user"
    assert 5 < len(messages) < len(prompt.messages)
    assert answer.text == answer_text(messages, WORDS)


async def test_the_server_counts_near_the_limit() -> None:
    async with FakeUpstream(max_model_len=400, words=WORDS) as upstream, running_engine(upstream.url) as engine:
        await collect(engine, conversation(1), PARAMS)
        assert [request.path for request in upstream.requests] == ["/v1/chat/completions"]
        await collect(engine, conversation(8), PARAMS)
    assert [request.path for request in upstream.requests[1:]] == ["/tokenize", "/v1/chat/completions"]
    assert upstream.requests[1].body["messages"] == conversation(8).messages


async def test_a_wrong_estimate_is_corrected_after_one_refusal() -> None:
    prompt = conversation(12, words=60)
    letters = [{**message, "content": message["content"].replace("word", "a")} for message in prompt.messages]
    prompt = replace(prompt, messages=letters)  # a token of the fake server has two characters
    async with (
        FakeUpstream(owned_by="sglang", max_model_len=1000, words=WORDS) as upstream,
        running_engine(upstream.url) as engine,
    ):
        answer = await collect(engine, prompt, PARAMS)
        lengths = [len(request.body["messages"]) for request in upstream.requests]
        assert len(lengths) == 2
        assert lengths[1] < lengths[0]
        assert answer.text == answer_text(upstream.requests[1].body["messages"], WORDS)
        await collect(engine, prompt, PARAMS)
        assert len(upstream.requests) == 3  # the refusal was a lesson


async def test_the_newest_message_alone_may_be_too_long() -> None:
    prompt = Prompt([SYSTEM, {"role": "user", "content": "a " * 500}], [], may_shorten=True)
    async with (
        FakeUpstream(owned_by="sglang", max_model_len=400) as upstream,
        running_engine(upstream.url) as engine,
    ):
        with pytest.raises(ContextLengthExceeded):
            await collect(engine, prompt, PARAMS)


async def test_a_complete_input_is_never_shortened() -> None:
    prompt = replace(conversation(40), may_shorten=False)
    async with FakeUpstream(max_model_len=400) as upstream, running_engine(upstream.url) as engine:
        with pytest.raises(ContextLengthExceeded):
            await collect(engine, prompt, PARAMS)
    assert [len(request.body["messages"]) for request in upstream.requests] == [len(prompt.messages)]


async def test_a_long_answer_gets_what_the_prompt_leaves() -> None:
    async with FakeUpstream(max_model_len=400, words=WORDS) as upstream, running_engine(upstream.url) as engine:
        await collect(engine, conversation(6), GenerationParams(max_new_tokens=5000))
        body = upstream.requests[-1].body
    assert 100 <= body["max_tokens"] <= 400


async def test_without_a_known_context_the_server_limits_the_answer(start: StartServer, client_of: ClientOf) -> None:
    limits = Limits(fill_context=True, context_len="max")
    async with FakeUpstream(owned_by="llamacpp", words=WORDS) as upstream:
        upstream.faults.append(Fault("reset", words=3))
        server = await start(ChatStream(engine=UpstreamEngine(upstream.url), limits=limits))
        await client_of(server).say("Hi")
    assert [body.get("max_tokens") for _, _, body in upstream.requests] == [None, None], "also to continue the answer"


async def test_a_conversation_never_ends_for_lack_of_room(start: StartServer, client_of: ClientOf) -> None:
    async with FakeUpstream(owned_by="sglang", max_model_len=150, words=WORDS) as upstream:
        chat_stream = ChatStream(engine=UpstreamEngine(upstream.url), params=PARAMS)
        server = await start(chat_stream)
        client = client_of(server)
        for number in range(30):
            await client.say(f"{number} " + "word " * 8)
        assert chat_stream.context_len == 150
        lengths = [len(request.body["messages"]) for request in upstream.requests]
        assert len(await client.history()) == 60
    assert max(lengths[-5:]) < 20


async def test_a_resumed_answer_keeps_its_prompt() -> None:
    prompt = conversation(40)
    async with two_upstreams(Fault("reset", words=5), owner="sglang", max_model_len=400) as both:
        texts = []
        async for delta in both.engine.generate(prompt, PARAMS):
            texts.append(delta.text)
            both.engine._estimate.learn(prompt.messages, 9000)  # the end of another answer
        requests = sorted((request.body["messages"] for request in both.first.requests + both.second.requests), key=len)
    messages, resumed = requests
    assert resumed[:-1] == messages
    assert "".join(texts) == answer_text(messages, FAKE_WORDS)
