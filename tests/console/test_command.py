"""``aiochatstream chat`` as a filter."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from transformers import LlamaConfig

from aiochatstream import ChatStream, GenerationParams
from tests.console.terminal import terminal
from tests.engines.transformers.checkpoints import save_model, save_sarashina_tokenizer
from tests.helpers import THOUGHTFUL, DeltaEngine, Server, echo, serving, until
from tests.processes import PYTHON, ROOT, finish, free_port

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

Start = Callable[..., Awaitable[Server]]


async def chat(*arguments: str) -> Process:
    env = {**os.environ, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    return await asyncio.create_subprocess_exec(
        PYTHON, "-m", "aiochatstream", "chat", *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=ROOT, env=env
    )


async def run_filter(text: str, *arguments: str) -> tuple[int, str, str]:
    """Return the exit code, stdout and stderr."""
    command = [PYTHON, "-m", "aiochatstream", "chat", *arguments]
    env = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    ended = await asyncio.to_thread(finish, command, text, env=env, forked=True)
    return ended.returncode, ended.stdout, ended.stderr


async def test_each_line_is_a_message_of_one_conversation_and_stdout_contains_the_answers(start: Start) -> None:
    conversations: list[list[dict[str, str]]] = []

    def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        conversations.append(messages)
        return echo(messages, params)

    server = await start(ChatStream(engine=engine))
    assert await run_filter("こんにちは 世界\n\n//two words", server.url) == (0, "こんにちは 世界 \n/two words \n", "")
    assert [message["content"] for message in conversations[-1]] == [
        "こんにちは 世界",
        "こんにちは 世界 ",
        "/two words",
    ]


async def test_thoughts_are_not_written(start: Start) -> None:
    server = await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)))
    assert await run_filter("Two and two?\n", server.url) == (0, "It is four.\n", "")


async def test_a_failed_line_is_reported_on_stderr_and_by_the_exit_code(start: Start) -> None:
    server = await start(ChatStream(engine=echo))
    code, out, err = await run_filter("/params temperature 9\nhello\n/exit\nnot read\n", server.url)
    assert (code, out) == (1, "hello \n")
    assert err == "aiochatstream: temperature: must be a number from 0 (greedy) to 2.\n"


async def test_options_set_the_parameters_of_all_answers(start: Start) -> None:
    server = await start(ChatStream(engine=echo))
    assert (await run_filter("one two three\n", server.url, "--max-new-tokens", "2"))[1] == "one two \n"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("{url} --device cpu", 2, "--device requires a model in this process; a server uses its own setting."),
        ("{url} --prompt plain", 2, "--prompt requires a model in this process; a server uses its own setting."),
        ("{url} --chat-template-kwargs {{}}", 2, "--chat-template-kwargs requires a model in this process;"),
        ("--prompt nonsense", 2, "--prompt: must be one of plain, chatml, "),
        ("{url} --system cat", 2, "--system requires a model in this process; a server uses its own setting."),
        ("{url} --temperature 3", 2, "temperature: must be a number from 0 (greedy) to 2."),
        ("{url}/nothing/here", 1, "{url}/nothing/here does not respond like an aiochatstream server (HTTP 404"),
        ("http://127.0.0.1:{free_port}", 1, "Cannot connect to http://127.0.0.1:{free_port}: Connection refused."),
        ("https://", 2, "https:// is not a URL such as http://127.0.0.1:8080."),
        ("http://127.0.0.1:{free_port} --locale ja", 1, "http://127.0.0.1:{free_port} に接続できません"),
        ("/no/such/folder", 2, "There is no folder /no/such/folder."),
    ],
)
async def test_errors_are_one_sentence(start: Start, arguments: str, code: int, sentence: str) -> None:
    names = {"url": (await start(ChatStream(engine=echo))).url, "free_port": free_port()}
    exit_code, out, err = await run_filter("hello\n", *arguments.format(**names).split())
    assert (exit_code, out) == (code, "")
    assert err.startswith("aiochatstream: " + sentence.format(**names))
    assert err.count("\n") == 1


async def test_a_model_without_a_template_requires_a_format(tmp_path: Path) -> None:
    folder = str(save_model(save_sarashina_tokenizer(tmp_path), LlamaConfig))
    options = ("--context-len", "512", "--max-new-tokens", "4")
    code, out, err = await run_filter("hello\n", folder, *options)
    assert (code, out) == (2, "")
    assert "This model has no chat template; choose a format with --prompt NAME (plain, chatml, " in err
    code, out, _ = await run_filter("hello\n", folder, *options, "--prompt", "plain")
    assert (code, out.endswith("\n")) == (0, True)


async def test_ctrl_c_ends_the_command_while_it_waits_for_a_line(start: Start) -> None:
    server = await start(ChatStream(engine=echo))
    process = await chat(server.url)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello\n")
    assert await process.stdout.readline() == b"hello \n"
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 130
    assert process.stderr is not None
    assert await process.stderr.read() == b""


async def test_a_closed_stdout_ends_the_command_quietly(start: Start) -> None:
    server = await start(ChatStream(engine=echo))
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        PYTHON, "-m", "aiochatstream", "chat", server.url, stdin=PIPE, stdout=writing, stderr=PIPE, cwd=ROOT
    )
    os.close(writing)
    _, err = await process.communicate(b"hello\n")
    assert err == b""
    assert process.returncode == 1
    await until(lambda: server.idle)


async def test_a_model_in_this_process_answers(model_folder: str) -> None:
    question = "What is the capital of France?\n"
    options = ("--max-new-tokens", "8", "--temperature", "0")
    code, out, err = await run_filter(question, model_folder, *options)
    assert code == 0, err
    assert "Paris" in out
    assert out.count("\n") == 1


STEERING = "\x1b]52;c;cm0gLXJm\x07\x1b[2J\x9b31m\r\x08shown\t"


@asynccontextmanager
async def hostile(**details: str) -> AsyncIterator[str]:
    """Yield the URL of a server that answers /chat_stream and /history, or refuses them with ``details``."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path in details:
            return web.json_response({"error": "x", "detail": details[request.path]}, status=403)
        if request.path == "/history":
            return web.json_response({"messages": []})
        event = {"text": STEERING}
        end = {"error": {"error": "x", "detail": STEERING}}
        events = f"event: delta\ndata: {json.dumps(event)}\n\nevent: error\ndata: {json.dumps(end)}\n\n"
        return web.Response(text=events, content_type="text/event-stream")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with serving(app) as url:
        yield url


@pytest.mark.parametrize("to", [0, 2, 1], ids=["terminal", "2>file", ">file"])
@pytest.mark.parametrize("refused", [None, "/history", "/chat_stream"])
async def test_control_characters_of_a_server_are_removed_for_terminals_only(
    refused: str | None, to: int, tmp_path: Path
) -> None:
    async with hostile(**({refused: STEERING} if refused else {})) as url:

        def talk() -> bytes:
            reading, writing = os.pipe()
            with open(writing, "w") as typing, open(reading) as stdin, (tmp_path / "file").open("wb") as file:
                print("hello", file=typing)
                typing.close()
                streams = {to: file.fileno()} | {0: stdin.fileno()}
                with terminal("chat", url, forked=True, streams=streams) as opened:
                    opened.wait_ended()
                    return opened.raw

        raw = await asyncio.to_thread(talk)
    assert set(raw) & {*range(9), *range(11, 13), *range(14, 32), 127} == set(), raw
    assert "\x9b" not in raw.decode()
    in_file = (tmp_path / "file").read_bytes()
    assert b"shown" in raw + in_file
    if in_file:
        assert STEERING.strip().encode() in in_file
