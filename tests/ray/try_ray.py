"""A trial of a Ray cluster with real servers: `make test-ray`. The exit status is 1 if a check fails.

It starts Ray on this machine, servers of the small model on it, and a server in front of them, and prints the times of
what happens: a replica is killed during an answer, the application is deployed again during answers, its load rises.
The environment .venv-ray is separate, because Ray is large.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import ray
from ray import serve

from tests.front_process import ROOT, Front, Stopwatch, front_process, is_ready, report, until

LIST_PORT, FRONT_PORT = 8918, 8919
LIST = f"http://127.0.0.1:{LIST_PORT}/upstreams"
KEY = "a-key-that-nobody-can-guess"
STORY = "Tell me a long story about a dog and a cat."
QUESTIONS = ("Tell me about the sea.", "Tell me about the sun.", "Tell me about the moon.")
SLOTS, TOKENS = 2, 64
ARGUMENTS = ("num_gpus=0", "num_cpus=1", "dtype=float32", f"concurrency={SLOTS}")


async def deploy(**arguments: int) -> None:
    """Deploy the application as a user does; return when all its replicas are ready."""
    pairs = [f"{name}={value}" for name, value in arguments.items()]
    command = [str(Path(sys.executable).parent / "serve"), "run", "--non-blocking", "aiochatstream.ray:app"]
    process = await asyncio.create_subprocess_exec(*command, *ARGUMENTS, *pairs, cwd=ROOT)
    assert await process.wait() == 0


async def urls_listed() -> list[str]:
    async with aiohttp.ClientSession() as session, session.get(LIST) as response:
        assert response.status == 200, await response.text()
        urls: list[str] = (await response.json())["upstreams"]
        return urls


def process_at(url: str) -> psutil.Process:
    """Return the process that listens at ``url``."""
    port = int(url.rpartition(":")[2])
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid is not None:
            return psutil.Process(connection.pid)
    raise AssertionError(f"Nothing listens at {url}.")


async def check_keys(url: str) -> None:
    """Check that only the key opens a replica."""
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {KEY}"}, 200)):
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{url}/v1/models") as response,
        ):
            assert response.status == status, response.status
    report(f"{url}: 401 without the key")


async def check_conversation(front: Front) -> None:
    """Check that the turns of a conversation have the same replica, which has the first turn in its cache."""
    answers: list[dict[str, Any]] = []
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        for text in ("My name is Anna.", "What is my name?"):
            body, headers = {"user_input": text}, {"Accept": "application/json"}
            async with session.post(f"{front.url}/chat_stream", json=body, headers=headers) as response:
                answers.append(await response.json())
                assert response.status == 200, answers
    first, second = (answer["usage"] for answer in answers)
    report(f"second turn: {second['cached_tokens']} of {second['prompt_tokens']} prompt tokens from the cache")
    assert second["cached_tokens"] > first["prompt_tokens"]


async def check_kill(front: Front) -> None:
    """Kill a replica during an answer."""
    expected = await front.ask(STORY)
    before = await urls_listed()
    started = asyncio.Event()
    answer = asyncio.create_task(front.ask(STORY, started))
    await started.wait()
    [victim] = await front.answering()
    process_at(victim).kill()
    watch = Stopwatch()

    async def is_unlisted() -> bool:
        return victim not in await urls_listed()

    async def is_replaced() -> bool:
        return len(await urls_listed()) == len(before)

    await until(is_unlisted, "the killed replica has left the list")
    report(f"kill -9 of {victim}: it is not in the list after {watch.seconds:.2f} s")
    text, gap = await answer
    assert text == expected.text, (text, expected.text)
    report(f"its answer has the same text; longest gap {gap:.2f} s (undisturbed {expected.longest_gap:.2f} s)")
    await until(is_replaced, "the replica is replaced")
    report(f"{len(before)} replicas are listed again after {watch.seconds:.1f} s")


@asynccontextmanager
async def load(front: Front, users: int, expected: dict[str, str]) -> AsyncIterator[list[float]]:
    """Let users ask again and again; yield the longest gaps of their answers, to which later ones are added."""
    ends = asyncio.Event()
    gaps: list[float] = []

    async def user(question: str) -> None:
        while not ends.is_set():
            text, gap = await front.ask(question)
            assert text == expected.setdefault(question, text), (question, text, expected[question])
            gaps.append(gap)

    async with asyncio.TaskGroup() as group:
        for number in range(users):
            group.create_task(user(QUESTIONS[number % len(QUESTIONS)]))
        try:
            yield gaps
        finally:
            ends.set()


async def check_redeploy(front: Front, expected: dict[str, str], replicas: int) -> None:
    """Deploy the application with fewer replicas while users ask."""
    before = await urls_listed()
    watch = Stopwatch()

    async def is_changed() -> bool:
        after = await urls_listed()
        return len(after) == replicas and not set(after) & set(before)

    async with load(front, len(QUESTIONS), expected) as gaps:
        await deploy(replicas=replicas)
        await until(is_changed, "the list has only the new replicas")
        report(f"deployed again: {len(before)} replicas were replaced by {replicas} in {watch.seconds:.1f} s")
    report(f"{len(gaps)} answers meanwhile: all whole, with the same texts; longest gap {max(gaps):.2f} s")


async def check_scaling(front: Front, expected: dict[str, str]) -> None:
    """Let Ray add a replica when the only one is busy."""
    await asyncio.to_thread(serve.delete, "default")  # otherwise, Ray begins with the present number
    await deploy(replicas=1, max_replicas=2)
    await until(lambda: is_ready(front.url), "the front has the new replica")

    async def is_scaled() -> bool:
        return len(await urls_listed()) == 2

    assert not await is_scaled()
    watch = Stopwatch()
    async with load(front, 2 * SLOTS, expected):
        await until(is_scaled, "there are two replicas")
        report(f"{2 * SLOTS} users of {SLOTS} slots: the second replica is listed after {watch.seconds:.1f} s")


async def main() -> None:
    os.environ |= {"AIOCHATSTREAM_API_KEYS": KEY, "RAY_USAGE_STATS_ENABLED": "0"}
    watch = Stopwatch()
    context = ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
        serve.start(http_options={"host": "127.0.0.1", "port": LIST_PORT})
        report(f"Ray {ray.__version__} runs after {watch.seconds:.1f} s")
        await deploy(replicas=3)
        urls = await urls_listed()
        report(f"replicas after {watch.seconds:.1f} s: {' '.join(urls)}")
        assert len(urls) == 3
        expected: dict[str, str] = {}
        async with front_process([f"list+{LIST}"], FRONT_PORT, KEY, slots_each=SLOTS, max_new_tokens=TOKENS) as front:
            await check_keys(urls[0])
            await check_conversation(front)
            await check_kill(front)
            await check_redeploy(front, expected, 2)
            await check_scaling(front, expected)
    finally:
        ray.shutdown()
    report("all checks passed")


if __name__ == "__main__":
    asyncio.run(main())
