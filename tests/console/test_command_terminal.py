"""``aiochatstream chat URL`` in a pseudo-terminal, with a real server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiochatstream import ChatStream, GenerationParams
from tests.console.terminal import ALT_ENTER, CTRL_C, CTRL_D, Terminal, terminal
from tests.helpers import Server, Stepper, echo, running_server, until

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

PROMPT = r"^>"


class Person:
    """Types and reads while the server, in the same event loop, answers."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    def type(self, text: str) -> None:
        self.terminal.type(text)

    async def reads(self, pattern: str) -> str:
        return (await asyncio.to_thread(self.terminal.wait_for, pattern))[0]

    async def says(self, text: str) -> None:
        """Type a line when it is asked for."""
        await self.reads(PROMPT)
        self.type(text + "\r")

    async def ends(self) -> int:
        return await asyncio.to_thread(self.terminal.wait_ended)


@asynccontextmanager
async def chatting(server: Server | str, *options: str, **env: str) -> AsyncIterator[Person]:
    url = server if isinstance(server, str) else server.url
    with terminal("chat", url, *options, **env) as opened:
        yield Person(opened)


async def stop(person: Person, server: Server, engine: Stepper) -> None:
    """Ctrl-C, and the step at which the engine notices."""
    person.type(CTRL_C)
    await until(lambda: all(turn.ending for turn in server.chat_stream._turns._turns.values()))
    engine.allow(1)
    await person.reads(r"\(stopped\)$")
    await until(lambda: server.idle)


@pytest.fixture
async def echoing() -> AsyncIterator[Server]:
    async with running_server(ChatStream(engine=echo)) as server:
        yield server


async def test_a_talk_from_the_first_message_to_ctrl_d(echoing: Server) -> None:
    async with chatting(echoing) as person:
        await person.reads(f"{echoing.url}.*: /help")
        await person.says("こんにちは 世界")
        await person.reads("^こんにちは 世界 $")
        await person.reads(r"^2 tokens · .*first after \d+\.\d\d s$")
        await person.says("/stats")
        await person.reads("^last answer: 2 tokens · ")
        await person.reads(PROMPT)
        person.type(CTRL_D)
        assert await person.ends() == 0
        assert "Traceback" not in person.terminal.text


async def test_alt_enter_and_a_pasted_new_line_make_one_message_of_several_lines(echoing: Server) -> None:
    async with chatting(echoing) as person:
        await person.reads(PROMPT)
        person.type(f"one{ALT_ENTER}two\x1b[200~\rthree\nfour\x1b[201~\r")
        await person.reads("^1 tokens")
        await person.says("/exit")
        assert await person.ends() == 0
    conversations = echoing.chat_stream._memory._conversations
    assert len(conversations) == 1
    assert b"one\\ntwo\\nthree\\nfour" in next(iter(conversations._entries.values()))[1]


async def test_ctrl_c_stops_the_answer_and_the_next_message_is_answered(
    start: Any, stepper: Callable[..., Stepper]
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine))
    async with chatting(server) as person:
        await person.says("Count")
        engine.allow(3)
        await person.reads("^1 2 3 ")
        await stop(person, server, engine)
        await person.says("Again")
        engine.allow(2)
        await person.reads("^1 2 ")
        await stop(person, server, engine)
        await person.says("/exit")
        assert await person.ends() == 0
    assert [message["content"] for message in engine.calls[1]] == ["Count", "1 2 3 4 ", "Again"]


async def test_ctrl_c_at_the_prompt_clears_the_line_and_the_second_one_leaves(echoing: Server) -> None:
    async with chatting(echoing) as person:
        await person.reads(PROMPT)
        person.type("not to be said")
        await person.reads("not to be said")
        person.type(CTRL_C)
        await person.reads("Ctrl-C again or Ctrl-D leaves")
        await person.says("hello")
        await person.reads("^hello $")
        await person.reads(PROMPT)
        person.type(CTRL_C)
        await person.reads("Ctrl-C again or Ctrl-D leaves")
        await person.reads(PROMPT)
        person.type(CTRL_C)
        assert await person.ends() == 0
    assert "Traceback" not in person.terminal.text


async def test_a_full_server_is_told_in_a_sentence_and_the_text_is_offered_again(
    start: Any, client_of: Any, stepper: Callable[..., Stepper]
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=0))
    other = asyncio.create_task(client_of(server).say("mine"))
    await until(lambda: engine.running == 1)
    async with chatting(server) as person:
        await person.says("please")
        await person.reads(r"Try again in \d+ s\.$")
        await person.reads("^> ?please")  # nobody typed it again
        engine.allow(256)
        await other
        engine.allow(2)
        person.type("\r")
        await person.reads("^1 2 ")
        await stop(person, server, engine)
    assert engine.calls[-1][-1]["content"] == "please"


async def test_the_place_in_the_queue_is_shown_and_ctrl_c_leaves_the_queue(
    start: Any, client_of: Any, stepper: Callable[..., Stepper]
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1))
    other = asyncio.create_task(client_of(server).say("mine"))
    await until(lambda: engine.running == 1)
    async with chatting(server) as person:
        await person.says("please")
        await person.reads("waiting, at place 1 of the queue")
        person.type(CTRL_C)
        await person.reads(r"\(stopped\)$")
        await until(lambda: server.chat_stream.admission.waiting == 0)
        await person.reads("^> ?please")
    engine.allow(256)
    await other


async def test_a_server_that_goes_away_is_told_in_a_sentence_and_the_program_goes_on(
    stepper: Callable[..., Stepper],
) -> None:
    engine = stepper()
    chat_stream = ChatStream(engine=engine, shutdown_timeout=0.01)
    async with running_server(chat_stream) as server, chatting(server) as person:
        await person.says("Count")
        engine.allow(1)
        await person.reads("^1 ")
        ending = asyncio.create_task(server.runner.cleanup())
        await until(lambda: all(turn.ending for turn in chat_stream._turns._turns.values()))
        engine.allow(1)
        await person.reads("The server is shutting down; the answer so far was kept")
        await person.reads("^> ?Count")
        await ending
        person.type("\r")
        await person.reads("Cannot connect to .*: Connection refused")
        await person.reads("^> ?Count")
        person.type(CTRL_C + CTRL_D)
        assert await person.ends() == 0


async def test_what_an_answer_says_does_not_steer_the_terminal() -> None:
    def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        yield "red \x1b[31mherring\x07\n"

    async with running_server(ChatStream(engine=engine)) as server, chatting(server) as person:
        await person.says("hello")
        await person.reads(r"^red \[31mherring$")
    assert b"\x1b[31m" not in person.terminal.raw.split(b"red ")[1].split(b"herring")[0]


async def test_in_japanese(echoing: Server) -> None:
    async with chatting(echoing, LC_ALL="ja_JP.UTF-8") as person:
        await person.reads("Ctrl-D で終了します")
        await person.says("/halp")
        await person.reads("^/halp というコマンドはありません。/help ですか")
        await person.says("/help")
        await person.reads("^/regenerate +最後の発言にもう一度答える$")


async def test_ctrl_c_ends_it_while_the_model_loads(tmp_path: Path, model_folder: str) -> None:
    async with chatting("small.gguf") as person:
        await person.reads("There is no file small.gguf")
        assert await person.ends() == 2
    async with chatting(model_folder) as person:
        await person.reads("Loading")
        person.terminal.popen.send_signal(signal.SIGINT)
        assert await person.ends() == 130
        assert "Traceback" not in person.terminal.text
        assert "terminate called" not in person.terminal.text


async def test_with_the_small_model(model_folder: str) -> None:
    async with chatting(model_folder, "--max-new-tokens", "12", "--temperature", "0") as person:
        await person.says("What is the capital of France?")
        await person.reads("Paris")
        await person.reads(r"^\d+ tokens · \d+\.\d tokens/s · first after")
        await person.says("/params max_new_tokens 13")
        await person.reads("max_new_tokens: must be from 1 to 12")
        await person.says("/exit")
        assert await person.ends() == 0
