"""The server that the tests of upstreams trust: deterministic answers, continued exactly, and faults."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.fake_answers import answer_text, prompt_ids
from tests.fake_upstream import FakeUpstream, Fault
from tests.helpers import until

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How far?"}]


async def post(upstream: FakeUpstream, path: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.post(upstream.url + path, json=body) as response:
        return {"status": response.status, **await response.json()}


async def chunks(upstream: FakeUpstream, path: str = "/v1/chat/completions", **body: Any) -> list[dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(upstream.url + path, json={"stream": True, **body}) as response,
    ):
        assert response.status == 200
        *events, end = [line.removeprefix("data: ") for line in (await response.text()).split("\n") if line[:1] == "d"]
        assert end == "[DONE]"
        return [json.loads(event) for event in events]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


async def test_streams_and_whole_answers_are_equal() -> None:
    async with FakeUpstream(words=12, split_bytes=7) as upstream:
        whole = await post(upstream, messages=MESSAGES)
        stream = await chunks(upstream, messages=MESSAGES, stream_options={"include_usage": True})
        assert whole["choices"][0]["message"]["content"] == text_of(stream) == answer_text(MESSAGES, 12)
        assert whole["choices"][0]["finish_reason"] == stream[-2]["choices"][0]["finish_reason"] == "stop"
        usage = stream[-1]["usage"]
        assert usage["completion_tokens"] == 12
        assert usage["prompt_tokens"] == usage["prompt_tokens_details"]["cached_tokens"] == len(prompt_ids(MESSAGES))
        assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize("length", [1, 8, 30])
async def test_continues_the_beginning_of_an_answer(length: int) -> None:
    answer = answer_text(MESSAGES, 12)
    prefix = {"role": "assistant", "content": answer[:length]}
    async with FakeUpstream(words=12) as upstream:
        resume: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
        assert answer[:length] + text_of(await chunks(upstream, messages=[*MESSAGES, prefix], **resume)) == answer
        prompt = "Q: How far? A: "
        whole = answer_text(prompt, 12)
        rest = await post(upstream, "/v1/completions", prompt=prompt + whole[:length])
        assert whole[:length] + rest["choices"][0]["text"] == whole
        assert upstream.misfits == 0


async def test_continues_token_ids() -> None:
    async with FakeUpstream(words=12) as upstream:
        begin = await post(upstream, messages=MESSAGES, max_tokens=5, return_token_ids=True)
        (choice,) = begin["choices"]
        assert choice["finish_reason"] == "length"
        ids = begin["prompt_token_ids"] + choice["token_ids"]
        rest = await post(upstream, "/v1/completions", prompt=ids)
        assert choice["message"]["content"] + rest["choices"][0]["text"] == answer_text(MESSAGES, 12)


async def test_ends_at_stop_strings_and_repeats_choices() -> None:
    async with FakeUpstream(words=12) as upstream:
        full = answer_text(MESSAGES, 12)
        (choice, other) = (await post(upstream, messages=MESSAGES, stop=[full[20:24]], n=2))["choices"]
        assert choice["message"]["content"] == full[:20]
        assert other["message"]["content"] == answer_text(MESSAGES, 12, choice=1)


async def test_calls_tools() -> None:
    call = {"name": "weather", "arguments": '{"city": "東京"}'}
    async with FakeUpstream(tool_calls=[call]) as upstream:
        stream = await chunks(upstream, messages=MESSAGES, tools=[{"type": "function"}])
        parts = [part for chunk in stream for part in chunk["choices"][0]["delta"].get("tool_calls", ())]
        assert "".join(part["function"]["arguments"] for part in parts) == call["arguments"]
        assert stream[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stage", ["request", "headers", "role", "words", "finish"])
async def test_resets_connections(stage: str) -> None:
    async with FakeUpstream(Fault("reset", stage, 3)) as upstream:
        with pytest.raises(aiohttp.ClientError):
            await chunks(upstream, messages=MESSAGES)
        assert text_of(await chunks(upstream, messages=MESSAGES))
        assert upstream.disconnects == []


async def test_refuses_and_returns() -> None:
    async with FakeUpstream(Fault("draining", match="far"), max_model_len=9) as upstream:
        refusal = await post(upstream, messages=MESSAGES)
        assert (refusal["status"], refusal["error"]["code"]) == (503, "draining")
        assert (await post(upstream, messages=MESSAGES, max_tokens=9))["error"]["type"] == "BadRequestError"
        await upstream.refuse()
        with pytest.raises(aiohttp.ClientConnectorError):
            await post(upstream, messages=MESSAGES)
        await upstream.listen()
        assert (await post(upstream, messages=MESSAGES, max_tokens=2))["status"] == 200


async def test_notices_that_a_client_leaves_while_it_is_silent() -> None:
    async with FakeUpstream(Fault("silence", "headers"), slots=1) as upstream:
        async with aiohttp.ClientSession() as session:
            url = f"{upstream.url}/v1/chat/completions"
            async with session.post(url, json={"messages": MESSAGES, "stream": True}) as response:
                assert (await post(upstream, messages=MESSAGES))["status"] == 503
                response.close()
        await until(lambda: upstream.disconnects)
        assert upstream.running == 0
        assert upstream.most_running == 1


async def test_sends_heartbeats_and_queues() -> None:
    async with FakeUpstream(heartbeat_s=0.01, first_token_s=0.1, slots=1, queue=True) as upstream:
        url = f"{upstream.url}/v1/chat/completions"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json={"messages": MESSAGES, "stream": True}) as r,
        ):
            text = await r.text()
        assert text.count(": keep-alive\n\n") > 1
        await asyncio.gather(*(post(upstream, messages=MESSAGES) for _ in range(3)))
        assert upstream.most_running == 1
