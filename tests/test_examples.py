"""The example, as it is printed in the README: many users, each with a conversation of their own."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from examples import simple_server
from tests.helpers import Client
from tests.processes import PYTHON, ROOT, START_PATIENCE, ask_when_listening, running

EXAMPLE = ROOT / "examples" / "simple_server.py"

GREEDY = {"temperature": 0, "max_new_tokens": 24}

WILHELMINA = ["My name is Wilhelmina and I live in Lisbon. Say hello to me.", "What is my name?"]
REX = ["My dog is called Rex.", "What is my dog called?"]


def prompt_tokens(tokenizer: Any, *contents: str) -> int:
    """The length of the prompt for what the user and the model said in turns."""
    roles = ["user", "assistant"]
    messages = [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]
    return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])


async def check_two_users_with_a_conversation_each(url: str, tokenizer: Any) -> None:
    """The history shows in the number of tokens that the model is told: exactly the user's own turns."""
    jars = [aiohttp.CookieJar(unsafe=True) for _ in range(2)]
    async with aiohttp.ClientSession(cookie_jar=jars[0]) as one, aiohttp.ClientSession(cookie_jar=jars[1]) as other:
        first, second = Client(one, url), Client(other, url)
        said = await asyncio.gather(first.say(WILHELMINA[0], params=GREEDY), second.say(REX[0], params=GREEDY))
        histories = [[asked[0], turn["text"]] for asked, turn in zip((WILHELMINA, REX), said, strict=True)]
        assert [turn["usage"]["prompt_tokens"] for turn in said] == [
            prompt_tokens(tokenizer, WILHELMINA[0]),
            prompt_tokens(tokenizer, REX[0]),
        ]

        said = await asyncio.gather(first.say(WILHELMINA[1], params=GREEDY), second.say(REX[1], params=GREEDY))
        own = [
            prompt_tokens(tokenizer, *histories[0], WILHELMINA[1]),
            prompt_tokens(tokenizer, *histories[1], REX[1]),
        ]
        others = [
            prompt_tokens(tokenizer, *histories[1], WILHELMINA[1]),
            prompt_tokens(tokenizer, *histories[0], REX[1]),
        ]
        assert own[0] != others[0]
        assert own[1] != others[1]
        assert [turn["usage"]["prompt_tokens"] for turn in said] == own


def test_two_users_have_a_conversation_each(tokenizer: Any) -> None:
    async def run() -> None:
        runner = web.AppRunner(await simple_server.create_app(), shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            await wait_ready(url)
            await check_two_users_with_a_conversation_each(url, tokenizer)
        finally:
            await runner.cleanup()

    asyncio.run(run())


async def wait_ready(url: str) -> None:
    """The example has one route only, which says 503 until the model is loaded."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(START_PATIENCE):
        while True:
            async with Client(session, url).post(user_input="Hello", params={"max_new_tokens": 1}) as response:
                await response.read()
                assert response.status in (200, 503)
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


def test_started_as_a_program_it_serves_two_users_on_port_8080_and_ends_at_ctrl_c(
    tokenizer: Any, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8080))
        except OSError:
            pytest.skip("port 8080, which the example uses, is taken on this machine")
    url = "http://127.0.0.1:8080"
    with running([PYTHON, "examples/simple_server.py"], tmp_path) as process:
        ask_when_listening(process, url)
        asyncio.run(wait_ready(url))
        asyncio.run(check_two_users_with_a_conversation_each(url, tokenizer))
        assert process.end(signal.SIGINT) == 0
        assert "Traceback" not in process.err


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 40


@pytest.mark.parametrize("name", ["README.md", "README_ja.md"])
def test_the_readme_prints_the_example_as_it_is(name: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    printed = [block for block in blocks if "handle_chat_stream_request" in block]
    assert printed, f"{name} does not print the example."
    assert printed[0] == EXAMPLE.read_text()
