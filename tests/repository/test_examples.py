"""Each example; the first one is printed in the README.

The simple server, the mock server and the console run as programs. The applications of the others run in the tests'
process, with a tiny model: each program would load the small model.
"""

from __future__ import annotations

import asyncio
import json
import re
import runpy
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest

from tests.engines.transformers.tiny_models import tiny
from tests.fake_answers import answer_text
from tests.fake_upstream import FakeUpstream
from tests.helpers import Client, browser, serving
from tests.processes import PYTHON, ROOT, START_PATIENCE, Process, ask_when_listening, finish, running

URL = "http://127.0.0.1:8080"

EXAMPLE = ROOT / "examples" / "simple_server.py"

FEW = {"temperature": 0, "max_new_tokens": 4}

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
    async with (
        aiohttp.ClientSession(cookie_jar=jars[0]) as first_session,
        aiohttp.ClientSession(cookie_jar=jars[1]) as other,
    ):
        first, second = Client(first_session, url), Client(other, url)
        answers = await asyncio.gather(first.say(WILHELMINA[0], params=GREEDY), second.say(REX[0], params=GREEDY))
        histories = [[questions[0], turn["text"]] for questions, turn in zip((WILHELMINA, REX), answers, strict=True)]
        assert [turn["usage"]["prompt_tokens"] for turn in answers] == [
            prompt_tokens(tokenizer, WILHELMINA[0]),
            prompt_tokens(tokenizer, REX[0]),
        ]

        answers = await asyncio.gather(first.say(WILHELMINA[1], params=GREEDY), second.say(REX[1], params=GREEDY))
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
        assert [turn["usage"]["prompt_tokens"] for turn in answers] == own


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


@contextmanager
def example(name: str, folder: Path) -> Iterator[Process]:
    """The example, started as a program, in an empty folder, and ready."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8080))
        except OSError:
            pytest.skip("port 8080, which the examples use, is taken on this machine")
    with running([PYTHON, str(ROOT / "examples" / name)], folder, cwd=folder, forked=True) as process:
        ask_when_listening(process, URL)
        yield process
        assert process.end(signal.SIGINT) == 0
        assert "Traceback" not in process.err


@asynccontextmanager
async def user() -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield Client(session, URL)


async def status(client: Client, path: str, **body: Any) -> int:
    async with client.post(path, **body) as response:
        await response.read()
        return int(response.status)


def test_the_program_serves_two_users_on_port_8080_and_ends_at_ctrl_c(tokenizer: Any, tmp_path: Path) -> None:
    with example("simple_server.py", tmp_path):
        asyncio.run(wait_ready(URL))
        asyncio.run(check_two_users_with_a_conversation_each(URL, tokenizer))


def test_mock_answers_in_turn(tmp_path: Path) -> None:
    async def talk() -> None:
        async with user() as client:
            answers = [(await client.say("hi", params=FEW))["text"] for _ in range(2)]
            assert answers[0] != answers[1]
            assert all(answers)

    with example("mock_server.py", tmp_path):
        asyncio.run(talk())


async def test_each_of_many_models_answers_by_its_name() -> None:
    app = await runpy.run_path(str(ROOT / "examples" / "many_models.py"))["create_app"]()
    async with serving(app) as url, browser(f"{url}/v1") as client:
        texts = {}
        for name in ("parrot", "talker", ""):
            messages = [{"role": "user", "content": "Hello there"}]
            async with client.post("/chat/completions", model=name, messages=messages, max_tokens=2) as response:
                answer = await response.json()
            texts[name] = answer["choices"][0]["message"]["content"]
        assert texts["parrot"] == "Hello there"
        assert all(texts[name] not in ("", "Hello there") for name in ("talker", ""))


async def test_a_front_answers_with_the_servers_and_outlives_one_of_them() -> None:
    async with FakeUpstream(words=8) as first, FakeUpstream(words=8) as second:
        app = await runpy.run_path(str(ROOT / "examples" / "front.py"))["create_app"](first.url, second.url)
        async with serving(app) as url, browser(url) as client:
            assert (await client.say("one"))["text"] == answer_text([{"role": "user", "content": "one"}], 8)
            await (first if first.requests else second).close()
            await client.say("two")
            assert len(await client.texts()) == 4
            async with client.session.get(f"{url}/v1/models") as response:
                assert [model["id"] for model in (await response.json())["data"]] == ["fake"]


ServeExample = Callable[[str], AbstractAsyncContextManager[str]]


@pytest.fixture
def serve_example(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServeExample:
    """``async with serve_example(name) as url`` serves the application of an example from an empty folder."""
    models = ModuleType("simple_server")
    vars(models).update(model=lambda: tiny(vocab_size=len(tokenizer)), tokenizer=lambda: tokenizer)
    monkeypatch.setitem(sys.modules, "simple_server", models)
    monkeypatch.chdir(tmp_path)

    @asynccontextmanager
    async def serve(name: str) -> AsyncIterator[str]:
        async with serving(await runpy.run_path(str(ROOT / "examples" / name))["create_app"]()) as url:
            yield url

    return serve


async def test_typing_the_phrase_makes_a_developer_and_the_key_a_monitor(
    serve_example: ServeExample, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEVELOPER_PHRASE", "open sesame")
    monkeypatch.setenv("MONITOR_KEY", "swordfish")
    async with serve_example("roles_server.py") as url, browser(url) as client:
        await wait_ready(url)
        await client.say("Hello", params=FEW)
        async with client.session.get(f"{url}/get_prompt") as response:
            assert response.status == 403
        granted = await client.say("open sesame")
        assert granted["text"] == "New role: 'developer' has been granted"
        async with client.session.get(f"{url}/get_prompt") as response:
            assert response.status == 200
        assert await client.texts() == ["Hello", (await client.texts())[1]]
        keys = [("swordfish", 200), ("wrong", 401)]
        for key, expected in keys:
            headers = {"X-FastSession-Skip": "skip", "X-ChatStream-Auth-Header": key}
            async with client.session.get(f"{url}/get_resource_usage", headers=headers) as response:
                assert response.status == expected
    assert "sesame" not in "".join(capfd.readouterr())


async def test_feedback_is_written_to_the_file(
    serve_example: ServeExample, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serve_example("feedback_server.py") as url, browser(url) as client:
        await wait_ready(url)
        answer = await client.say("Hello", params=FEW)
        feedback = {"message_id": answer["message_id"], "is_like": True, "form_data": {"comment": "とても良い"}}
        assert await status(client, "/set_feedback", **feedback) == 200
    assert f"liked {answer['message_id']}" in capfd.readouterr().out
    assert json.loads((tmp_path / "feedback.jsonl").read_text("utf-8"))["form_data"] == {"comment": "とても良い"}


async def test_an_application_can_read_the_request_first(serve_example: ServeExample) -> None:
    async with serve_example("intercept_server.py") as url, browser(url) as client:
        await wait_ready(url)
        assert await status(client, "/chat_stream", user_input="my password is tulip") == 422
        assert (await client.say("Hello", params=FEW))["text"]
        assert (await client.say(regenerate=True, params=FEW))["text"]
        for body, code in ((b"[]", 422), (b"hello", 400)):
            async with client.session.post(f"{url}/chat_stream", data=body) as response:
                assert response.status == code


async def test_the_callback_receives_the_outcome_of_each_request(
    serve_example: ServeExample, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serve_example("callback_server.py") as url, browser(url) as client:
        await wait_ready(url)
        assert await status(client, "/chat_stream", user_input="Hello", params=FEW) == 200
        assert await status(client, "/chat_stream", user_input="") == 422
    printed = capfd.readouterr().out
    assert "finished: success" in printed
    assert "finished: unknown_error_occurred: invalid_value" in printed


def test_the_console_answers_typed_messages() -> None:
    command = [PYTHON, str(ROOT / "examples" / "console.py")]
    typed = "Say hello to me.\n\n"
    ended = finish(command, typed, forked=True)
    assert ended.returncode == 0, ended.stderr
    _, answer, _ = ended.stdout.split("you: ")
    assert answer.strip()


async def test_a_login_restores_the_conversation_in_any_browser_and_after_a_restart(
    serve_example: ServeExample,
) -> None:
    async def log_in(client: Client, name: str) -> None:
        assert await status(client, "/log_in", user=name) == 200

    async with (
        serve_example("sqlite_conversations.py") as url,
        browser(url) as stranger,
        browser(url) as alice,
        browser(url) as bob,
    ):
        await wait_loaded(url)
        assert await status(stranger, "/chat_stream", user_input="Hello") == 401
        await log_in(alice, "alice")
        await alice.say("one", params=FEW)
        await log_in(bob, "bob")
        assert await bob.texts() == []
    async with serve_example("sqlite_conversations.py") as url, browser(url) as alice:
        await wait_loaded(url)
        await log_in(alice, "alice")
        assert (await alice.texts())[0] == "one"
        await alice.say("two", params=FEW)
        assert (await alice.texts())[2] == "two"
        assert await status(alice, "/clear_context") == 200
        assert await alice.texts() == []


async def wait_loaded(url: str) -> None:
    """Wait until the model is loaded, if only users who are logged in may send messages."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(START_PATIENCE):
        while True:
            async with session.get(f"{url}/readyz") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*_*.py")), ids=lambda path: path.name)
def test_each_server_starts_like_the_simple_server(path: Path) -> None:
    start = EXAMPLE.read_text().splitlines()[-2:]
    assert path.read_text().splitlines()[-2:] == start


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 40


@pytest.mark.parametrize("name", ["README.md", "README_ja.md"])
def test_the_readme_prints_the_example_as_it_is(name: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    printed = [block for block in blocks if "handle_chat_stream_request" in block]
    assert printed, f"{name} does not print the example."
    assert printed[0] == EXAMPLE.read_text()
