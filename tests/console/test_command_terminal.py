"""``aiochatstream chat`` in a pseudo-terminal, with a real server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiochatstream import ChatStream, Delta, GenerationParams, Limits
from tests.console.terminal import ALT_ENTER, CTRL_C, CTRL_D, Terminal, terminal
from tests.helpers import STUCK_THOUGHT, Client, DeltaEngine, Server, Stepper, echo, running_server, until

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

Start = Callable[..., Awaitable[Server]]
ClientOf = Callable[[Server], Client]
NewStepper = Callable[..., Stepper]

PROMPT = r"^>"


class Typist:
    """A user of a terminal, whose methods do not block the event loop of the server."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    def type(self, text: str) -> None:
        self.terminal.type(text)

    async def read(self, pattern: str) -> str:
        return (await asyncio.to_thread(self.terminal.wait_for, pattern))[0]

    async def enter(self, text: str) -> None:
        """Wait for the prompt and type a line."""
        await self.read(PROMPT)
        self.type(text + "\r")

    async def wait_ended(self) -> int:
        return await asyncio.to_thread(self.terminal.wait_ended)


@asynccontextmanager
async def chatting(
    server: Server | str, *options: str, lc_all: str = "C.UTF-8", forked: bool = True
) -> AsyncIterator[Typist]:
    url = server if isinstance(server, str) else server.url
    with terminal("chat", url, *options, LC_ALL=lc_all, forked=forked) as opened:
        yield Typist(opened)


async def stop(typist: Typist, server: Server, engine: Stepper) -> None:
    """Press Ctrl-C, and let the engine make the step after which it stops."""
    typist.type(CTRL_C)
    await until(lambda: server.stopping)
    engine.allow(1)
    await typist.read(r"\(stopped\)$")
    await until(lambda: server.idle)


@pytest.fixture
async def echo_server() -> AsyncIterator[Server]:
    async with running_server(ChatStream(engine=echo)) as server:
        yield server


async def test_a_chat_from_the_first_message_to_ctrl_d(echo_server: Server) -> None:
    async with chatting(echo_server, forked=False) as typist:
        await typist.read(f"{echo_server.url}.*: /help")
        await typist.enter("こんにちは 世界")
        await typist.read("^こんにちは 世界 $")
        await typist.read(r"^2 tokens · .*first after \d+\.\d\d s$")
        await typist.enter("/stats")
        await typist.read("^last answer: 2 tokens · ")
        await typist.read(PROMPT)
        typist.type(CTRL_D)
        assert await typist.wait_ended() == 0
        assert "Traceback" not in typist.terminal.text


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
async def test_thoughts_are_dim_and_end_before_the_answer(start: Start, term: str) -> None:
    deltas = (Delta(thinking="Let me [b]see\x1b[31m: "), Delta(thinking="two\n\nlines"), Delta("The answer"))
    server = await start(ChatStream(engine=DeltaEngine(*deltas, Delta(finish_reason="stop"))))
    with terminal("chat", server.url, TERM=term, forked=True) as opened:
        typist = Typist(opened)
        await typist.enter("Is it?")
        await typist.read(r"^Let me \[b\]see\[31m: two\n\nlines\nThe answer\n")
        await typist.enter("/exit")
        assert await typist.wait_ended() == 0
    dim = [b"\x1b[2m", b"\x1b[0m"] if term != "dumb" else [b"", b""]
    assert b"lines".join(dim) + b"\r\nThe answer\r\n" in opened.raw
    assert b"\x1b[31m" not in opened.raw


async def test_a_thought_that_reaches_the_maximum_length_in_japanese(start: Start) -> None:
    server = await start(ChatStream(engine=DeltaEngine(*STUCK_THOUGHT)))
    async with chatting(server, lc_all="ja_JP.UTF-8") as typist:
        await typist.enter("2 足す 2 は？")
        await typist.read("^Let me $")
        await typist.read("^（応答の前の思考中に、長さの上限で打ち切りました）$")
        await typist.read("^1 トークン · うち思考 1 トークン · ")


async def test_alt_enter_and_pasted_newlines_form_one_message() -> None:
    received: list[str] = []

    def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        received.append(messages[-1]["content"])
        yield "Fine."

    async with running_server(ChatStream(engine=engine)) as server, chatting(server) as typist:
        await typist.read(PROMPT)
        typist.type(f"one{ALT_ENTER}two\x1b[200~\rthree\nfour\x1b[201~\r")
        await typist.read("^1 tokens")
        await typist.enter("/exit")
        assert await typist.wait_ended() == 0
    assert received == ["one\ntwo\nthree\nfour"]


async def test_ctrl_c_stops_the_answer(start: Start, stepper: NewStepper) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    async with chatting(server) as typist:
        await typist.enter("Count")
        engine.allow(3)
        await typist.read("^1 2 3 ")
        await stop(typist, server, engine)
        await typist.enter("Again")
        engine.allow(2)
        await typist.read("^1 2 ")
        await stop(typist, server, engine)
        await typist.enter("/exit")
        assert await typist.wait_ended() == 0
    assert [message["content"] for message in engine.calls[1]] == ["Count", "1 2 3 4 ", "Again"]


async def test_ctrl_c_at_the_prompt_clears_the_line_and_a_second_one_exits(echo_server: Server) -> None:
    async with chatting(echo_server) as typist:
        await typist.read(PROMPT)
        typist.type("not to be said")
        await typist.read("not to be said")
        typist.type(CTRL_C)
        await typist.read("Press Ctrl-C again or Ctrl-D to exit")
        await typist.enter("hello")
        await typist.read("^hello $")
        await typist.read(PROMPT)
        typist.type(CTRL_C)
        await typist.read("Press Ctrl-C again or Ctrl-D to exit")
        await typist.read(PROMPT)
        typist.type(CTRL_C)
        assert await typist.wait_ended() == 0
    assert "Traceback" not in typist.terminal.text


async def test_a_message_that_a_full_queue_refuses_is_offered_again(
    start: Start, client_of: ClientOf, stepper: NewStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=0))
    other = asyncio.create_task(client_of(server).say("mine"))
    await until(lambda: engine.running == 1)
    async with chatting(server) as typist:
        await typist.enter("please")
        await typist.read(r"Try again in \d+ s\.$")
        await typist.read("^> ?please")  # not typed again
        engine.allow(256)
        await other
        engine.allow(2)
        typist.type("\r")
        await typist.read("^1 2 ")
        await stop(typist, server, engine)
    assert engine.calls[-1][-1]["content"] == "please"


async def test_the_position_in_the_queue_is_shown_and_ctrl_c_leaves_the_queue(
    start: Start, client_of: ClientOf, stepper: NewStepper
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1))
    other = asyncio.create_task(client_of(server).say("mine"))
    await until(lambda: engine.running == 1)
    async with chatting(server) as typist:
        await typist.enter("please")
        await typist.read("waiting, position 1 in the queue")
        typist.type(CTRL_C)
        await typist.read(r"\(stopped\)$")
        await until(lambda: server.chat_stream.admission.waiting == 0)
        await typist.read("^> ?please")
    engine.allow(256)
    await other


async def test_the_console_continues_after_the_server_has_stopped(
    stepper: NewStepper,
) -> None:
    engine = stepper()
    chat_stream = ChatStream(engine=engine, limits=Limits(shutdown_timeout=0.01))
    async with running_server(chat_stream) as server, chatting(server) as typist:
        await typist.enter("Count")
        engine.allow(1)
        await typist.read("^1 ")
        ending = asyncio.create_task(server.runner.cleanup())
        await until(lambda: server.stopping)
        engine.allow(1)
        await typist.read("The server is shutting down; the answer so far was saved")
        await typist.read("^> ?Count")
        await ending
        typist.type("\r")
        await typist.read("Cannot connect to .*: Connection refused")
        await typist.read("^> ?Count")
        typist.type(CTRL_C + CTRL_D)
        assert await typist.wait_ended() == 0


async def test_control_characters_of_answers_are_removed() -> None:
    def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        yield "red \x1b[31mherring\x07\n"

    async with running_server(ChatStream(engine=engine)) as server, chatting(server) as typist:
        await typist.enter("hello")
        await typist.read(r"^red \[31mherring$")
    assert b"\x1b[31m" not in typist.terminal.raw.split(b"red ")[1].split(b"herring")[0]


async def test_in_japanese(echo_server: Server) -> None:
    async with chatting(echo_server, lc_all="ja_JP.UTF-8") as typist:
        await typist.read("Ctrl-D で終了します")
        await typist.enter("/halp")
        await typist.read("^/halp というコマンドはありません。/help ですか")
        await typist.enter("/help")
        await typist.read("^/regenerate +最後のメッセージに対する応答を生成し直す$")


async def test_ctrl_c_ends_the_command_while_the_model_loads(tmp_path: Path, model_folder: str) -> None:
    async with chatting("small.gguf") as typist:
        await typist.read("There is no file small.gguf")
        assert await typist.wait_ended() == 2
    async with chatting(model_folder) as typist:
        await typist.read("Loading")
        typist.terminal.popen.send_signal(signal.SIGINT)
        assert await typist.wait_ended() == 130
        assert "Traceback" not in typist.terminal.text
        assert "terminate called" not in typist.terminal.text


async def test_with_the_small_model(model_folder: str) -> None:
    async with chatting(model_folder, "--max-new-tokens", "12", "--temperature", "0") as typist:
        await typist.enter("What is the capital of France?")
        await typist.read("Paris")
        await typist.read(r"^\d+ tokens · \d+\.\d tokens/s · first after")
        await typist.enter("/params max_new_tokens 13")
        await typist.read("max_new_tokens: must be from 1 to 12")
        await typist.enter("/exit")
        assert await typist.wait_ended() == 0
