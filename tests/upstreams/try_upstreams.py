"""A trial of a front with vLLM's build for CPUs: `make test-upstreams`. The exit status is 1 if a check fails.

The small model runs in vLLM and in this project's server, both in float32, so that their greedy answers are equal. vLLM
is killed during an answer, and the other server finishes it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import ExitStack
from typing import Any

import aiohttp

from aiochatstream.engines.transformers import small_model
from tests.front_process import ROOT, Front, Stopwatch, front_process, is_ready, report, until

sys.path.insert(0, str(ROOT / "bench"))

from peers import PEERS
from server_process import ServerProcess, free_port, running_process
from server_specs import parse_spec

KEY = "a-key-that-nobody-can-guess"
QUESTION, STORY = "What is the capital of France?", "Tell me a long story about a dog and a cat."
TOKENS = 64
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
RELAYED: tuple[dict[str, Any], ...] = (
    {"logprobs": True, "top_logprobs": 2},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": PARAMETERS}}},
    {
        "tools": [{"type": "function", "function": {"name": "find", "parameters": PARAMETERS}}],
        "tool_choice": {"type": "function", "function": {"name": "find"}},
    },
)
"""Fields of requests to /v1 that the front passes on."""
OURS = "{python} -m aiochatstream serve {model} --port {port} --dtype float32 --temperature 0"
OPTIONS = f"--enforce-eager --max-model-len 2048 --enable-auto-tool-choice --tool-call-parser hermes --api-key {KEY}"
"""vLLM's further options: without compilation, which takes minutes."""


async def completion(url: str, text: str, **fields: Any) -> dict[str, Any]:
    """Return the response of the server at ``url`` to a message."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        async with session.get(f"{url}/v1/models") as response:
            model = (await response.json())["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": TOKENS}
        async with session.post(f"{url}/v1/chat/completions", json={**body, "temperature": 0, **fields}) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


async def check_answers(vllm: ServerProcess) -> str:
    """Check that answers of vLLM through a front are those of vLLM itself; return the text of the story."""
    async with front_process([vllm.url], free_port(), KEY, slots_each=8, max_new_tokens=TOKENS) as front:
        for question in (QUESTION, STORY):
            direct = await completion(vllm.url, question)
            text, _ = await front.ask(question)
            assert text == text_of(direct), (text, direct)
            relayed = await completion(front.url, question)
            assert text_of(relayed) == text, (relayed, text)
            assert relayed["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"], (relayed, direct)
            report(f"through the front, the same text and tokens as from vLLM: {text[:50]!r}...")
        await check_relay(front, vllm)
    return text


async def check_relay(front: Front, vllm: ServerProcess) -> None:
    """Check that responses with fields that only vLLM knows are those of vLLM itself."""
    for fields in RELAYED:
        direct, relayed = [await completion(url, QUESTION, **fields) for url in (vllm.url, front.url)]
        for answer in (direct, relayed):
            for call in answer["choices"][0]["message"].get("tool_calls") or ():
                assert call.pop("id")  # random
        assert relayed["choices"] == direct["choices"], (relayed, direct)
        report(f"through the front, the same choices as from vLLM: {', '.join(fields)}")


async def check_resume(vllm: ServerProcess, ours: ServerProcess, expected: str) -> None:
    """Kill vLLM during an answer, which the other server finishes."""
    async with front_process([vllm.url, ours.url], free_port(), KEY, slots_each=8, max_new_tokens=TOKENS) as front:
        answer = await answer_of(front, vllm)
        os.killpg(vllm.popen.pid, signal.SIGKILL)
        text, gap = await answer
        assert text == expected, (text, expected)
        report(
            f"kill -9 of vLLM during an answer: aiochatstream finished it with the same text; longest gap {gap:.2f} s"
        )


async def answer_of(front: Front, server: ServerProcess) -> asyncio.Task[Any]:
    """Return an answer that ``server`` has started."""
    while True:
        started = asyncio.Event()
        answer = asyncio.create_task(front.ask(STORY, started))
        await started.wait()
        if await front.answering() == [server.url]:
            return answer
        await answer  # of the other server; another user may have this one


async def main() -> None:
    spec = parse_spec("vllm", PEERS)
    if spec.missing:
        sys.exit(f"vLLM's build for CPUs is {spec.missing}")
    versions = " ".join(map(" ".join, spec.versions.items()))
    watch = Stopwatch()
    with ExitStack() as processes:
        command = f"{spec.command.replace('bfloat16', 'float32')} {OPTIONS}"
        placeholders = {"model": small_model(), **spec.placeholders}
        vllm = processes.enter_context(running_process(command, placeholders, spec.env))
        await wait_ready(vllm)
        report(f"{versions}: ready after {watch.seconds:.1f} s")
        expected = await check_answers(vllm)
        own_placeholders = {**placeholders, "python": sys.executable}
        own_env = {**os.environ, "AIOCHATSTREAM_API_KEYS": KEY}
        ours = processes.enter_context(running_process(OURS, own_placeholders, own_env))
        await wait_ready(ours)
        assert text_of(await completion(ours.url, STORY)) == expected
        await check_resume(vllm, ours, expected)
    report("all checks passed")


async def wait_ready(server: ServerProcess) -> None:
    async def has_started() -> bool:
        assert not server.exit_reason, server.exit_reason
        return await is_ready(server.url)

    await until(has_started, "a server is ready")


if __name__ == "__main__":
    asyncio.run(main())
