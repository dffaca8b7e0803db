"""Lines and what comes of them, with a model in this process and with a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, CookieStorage, GenerationParams, ScriptedEngine
from aiochatstream.console.backend import Backend
from aiochatstream.console.console import Console
from aiochatstream.console.local import LocalBackend
from aiochatstream.console.remote import ServerBackend
from aiochatstream.console.screen import Screen
from aiochatstream.conversations.export import ExportedConversation
from aiochatstream.texts import EN
from tests.helpers import Stepper, running_server, until


class Heard(Screen):
    """A screen that keeps what it is given."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.remarks: list[str] = []
        self.said: list[str] = []
        self.complaints: list[str] = []
        self.waits: list[str] = []
        self._answer = ""

    def wait(self, why: str) -> None:
        self.waits.append(why)

    def write(self, text: str) -> None:
        self._answer += text

    def end(self) -> None:
        self.answers += [self._answer] if self._answer else []
        self._answer = ""

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def say(self, text: str) -> None:
        self.said.append(text)

    def complain(self, sentence: str) -> None:
        self.complaints.append(sentence)


class Engine:
    """Answers "<number of the answer>: <newest message>", and keeps what it was asked."""

    def __init__(self) -> None:
        self.messages: list[list[dict[str, str]]] = []
        self.params: list[GenerationParams] = []

    def __call__(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        self.messages.append(messages)
        self.params.append(params)
        yield f"{len(self.messages)}: "
        yield messages[-1]["content"]


Open = Callable[..., Awaitable[Console]]


def heard(console: Console) -> Heard:
    assert isinstance(console.screen, Heard)
    return console.screen


async def take(console: Console, *lines: str) -> Heard:
    for line in lines:
        await console.take(line)
    return heard(console)


@pytest.fixture
async def local() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_(engine: Any, **options: Any) -> Console:
            chat_stream = await stack.enter_async_context(ChatStream(engine=engine, **options))
            return Console(LocalBackend(chat_stream, "here"), Heard(), EN)

        yield open_


@pytest.fixture
async def remote() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_(engine: Any, storage: AbstractStorage | None = None, **options: Any) -> Console:
            server = await stack.enter_async_context(running_server(ChatStream(engine=engine, **options), storage))
            backend: Backend = await stack.enter_async_context(ServerBackend(server.url + "/", EN))
            return Console(backend, Heard(), EN)

        yield open_


@pytest.fixture(params=["local", "remote"])
def open_(request: pytest.FixtureRequest, local: Open, remote: Open) -> Open:
    return {"local": local, "remote": remote}[request.param]


async def test_a_conversation_goes_on_is_answered_again_and_forgotten(open_: Open) -> None:
    engine = Engine()
    console = await open_(engine)
    screen = await take(console, "日本語で", "  \n", "two", "/regenerate", "/clear", "/clear", "new")
    assert screen.answers == ["1: 日本語で", "2: two", "3: two", "4: new"]
    assert [len(messages) for messages in engine.messages] == [1, 3, 3, 1]
    assert screen.said == [EN.cleared, EN.nothing_to_clear]
    assert (screen.complaints, console.draft) == ([], "")


async def test_after_each_answer_there_are_its_figures_and_stats_adds_them_up(open_: Open) -> None:
    console = await open_(Engine())
    screen = await take(console, "/stats", "one", "two", "/stats")
    assert screen.said[0] == EN.no_stats
    assert all(remark.startswith("2 tokens") and "first after" in remark for remark in screen.remarks)
    last, every = screen.said[1].splitlines()
    assert last.startswith("last answer: 2 tokens")
    assert every.startswith("all 2: 4 tokens")
    assert every.endswith("prompts of 0 tokens, 0 of them not computed again")


async def test_params_hold_for_the_answers_that_follow(open_: Open) -> None:
    engine = Engine()
    console = await open_(engine, temperature=1.5, top_k=7)
    screen = await take(console, "/params", "/params temperature 0.25 stop '[\"二\"]'", "one 二 three")
    assert screen.said[1].splitlines() == ["temperature 0.25", 'stop ["二"]']
    assert screen.said[0].startswith("No parameter is set")
    assert (engine.params[0].temperature, engine.params[0].top_k, engine.params[0].stop) == (0.25, 7, ("二",))
    assert screen.answers == ["1: one "]
    screen = await take(console, "/params temperature default stop default", "two")
    assert engine.params[1].temperature == 1.5
    assert screen.said[2] == screen.said[0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/params temperature 3", "temperature: must be a number from 0 (greedy) to 2."),
        ("/params temperature hot", "temperature: must be a number from 0 (greedy) to 2."),
        ("/params heat 3", "There is no parameter heat. There are max_new_tokens, "),
        ("/params temperature", "/params takes names and values in turn"),
        ("/params stop '[", "No closing quotation"),
        ("/params stop " + "[" * 100_000, "stop: must be a list of up to 16 strings"),
        ("/regenrate", "There is no command /regenrate. Is it /regenerate?"),
        ("/xyzzy", "There is no command /xyzzy. /help shows all"),
        ("/save", "/save takes the name of a file"),
        ("/load {folder}", "{folder}: Is a directory."),
        ("/save {folder}/missing/file", "{folder}/missing/file: No such file or directory."),
        ("/load {folder}/missing", "{folder}/missing: No such file or directory."),
        ("/load {folder}/notes", "{folder}/notes holds no conversation that /save wrote: "),
        ("/load {folder}/odd", "{folder}/odd holds no conversation that /save wrote: messages: must be of user and"),
        ("/regenerate", "There is no message in this conversation to answer again."),
    ],
)
async def test_what_is_wrong_is_told_in_a_sentence_and_nothing_changes(
    line: str, sentence: str, open_: Open, tmp_path: Path
) -> None:
    (tmp_path / "notes").write_bytes(b"\xff rubbish")
    (tmp_path / "odd").write_text('{"messages": [{"role": "user", "content": "x"}]}')
    console = await open_(Engine())
    screen = await take(console, line.format(folder=tmp_path) if "{folder}" in line else line, "//still here")
    assert len(screen.complaints) == console.failures == 1
    assert screen.complaints[0].startswith(sentence.replace("{folder}", str(tmp_path)))
    assert screen.answers == ["1: /still here"]
    assert screen.said == []


async def test_a_limit_of_the_model_is_told_when_it_is_passed_not_with_the_next_answer(local: Open) -> None:
    console = await local(Engine(), max_new_tokens=8)
    screen = await take(console, "/params max_new_tokens 9", "one")
    assert screen.complaints == ["params.max_new_tokens: must be from 1 to 8 on this server."]
    assert screen.answers == ["1: one"]
    engine = ScriptedEngine()
    engine.vocab_size = 100
    screen = await take(await local(engine), """/params logit_bias '{"100": 1}'""")
    assert screen.complaints == ["params.logit_bias: 100 is none of the model's 100 token ids."]


async def test_help_names_every_command_and_exit_leaves(open_: Open) -> None:
    console = await open_(Engine())
    screen = await take(console, "/help")
    named = [line.split()[0] for line in screen.said[0].splitlines() if line.startswith("/") and "//" not in line]
    assert named == [
        "/regenerate",
        "/clear",
        "/system",
        "/params",
        "/save",
        "/load",
        "/stats",
        "/help",
        "/exit",
    ]
    assert not console.leaving
    await take(console, "/exit")
    assert console.leaving


async def test_the_system_prompt_can_be_shown_set_and_taken_back(open_: Open) -> None:
    engine = Engine()
    console = await open_(engine, allow_system_prompt=True)
    screen = await take(console, "/system", "/system 猫として話す。", "one", "/system default", "two")
    assert screen.said == [EN.models_own_system, "System prompt: 猫として話す。", EN.models_own_system]
    assert engine.messages[0][0] == {"role": "system", "content": "猫として話す。"}
    assert [message["role"] for message in engine.messages[1]] == ["user", "assistant", "user"]


async def test_a_server_may_keep_its_system_prompt_to_itself_and_it_takes_a_conversation(
    remote: Open, tmp_path: Path
) -> None:
    engine = Engine()
    console = await remote(engine)
    file = tmp_path / "talk.json"
    screen = await take(
        console, "/system be a cat", "/system", "one", f"/save {file}", "/clear", f"/load {file}", "two"
    )
    assert screen.complaints == [EN.server_sets_system]
    assert screen.answers == ["1: one", "2: two"]
    assert [message["content"] for message in engine.messages[1]] == ["one", "1: one", "two"]


async def test_a_saved_conversation_of_either_goes_on_in_a_model_here(open_: Open, local: Open, tmp_path: Path) -> None:
    file = tmp_path / "会話 1.json"
    await take(await open_(Engine()), "こんにちは", "two", f"/save {file}")
    assert "こんにちは" in file.read_text(encoding="utf-8")

    engine = Engine()
    console = await local(engine)
    screen = await take(console, "forgotten", f"/load {file}", "three")
    assert screen.said == [f"2 turns are loaded from {file}."]
    assert [message["content"] for message in engine.messages[1]] == [
        "こんにちは",
        "1: こんにちは",
        "two",
        "2: two",
        "three",
    ]


async def test_a_saved_conversation_keeps_its_system_prompt_and_what_was_interrupted(
    open_: Open, stepper: Callable[..., Stepper], tmp_path: Path
) -> None:
    engine, file = stepper(), tmp_path / "talk.json"
    console = await open_(engine, allow_system_prompt=True)
    await take(console, "/system be a cat")
    await interrupted(console, engine, "Count")
    await take(console, f"/save {file}")
    saved = json.loads(file.read_text())
    assert saved["system"] == "be a cat"
    assert [message.get("state") for message in saved["messages"]] == [None, "interrupted"]
    another = await open_(Engine(), allow_system_prompt=True)
    screen = await take(another, f"/load {file}")
    assert screen.said[-1] == "System prompt: be a cat"
    assert await another.backend.get_system() == "be a cat"
    assert await another.backend.save() == ExportedConversation.read(file)


async def interrupted(console: Console, engine: Stepper, line: str) -> None:
    """Have ``line`` answered with one step and then interrupt."""
    taking = asyncio.create_task(console.take(line))
    engine.allow(1)
    await until(lambda: heard(console)._answer)
    console.interrupt()
    while not taking.done():
        engine.allow(1)
        await asyncio.wait({taking}, timeout=0.05)
    await taking


async def test_an_interrupted_answer_is_marked_kept_and_the_next_message_is_answered(
    open_: Open, stepper: Callable[..., Stepper]
) -> None:
    engine = stepper()
    console = await open_(engine)
    for line in ("one", "two"):
        await interrupted(console, engine, line)
    screen = heard(console)
    assert [answer.split()[0] for answer in screen.answers] == ["1", "1"]
    assert screen.remarks.count(EN.stopped) == 2
    assert (screen.complaints, console.draft) == ([], "")
    saved = await console.backend.save()
    assert [message.content for message in saved.messages[::2]] == ["one", "two"]
    assert {message.state for message in saved.messages[1::2]} == {"interrupted"}


async def test_an_answer_that_does_not_stop_is_left_with_the_second_interrupt(
    open_: Open, stepper: Callable[..., Stepper]
) -> None:
    engine = stepper()
    console = await open_(engine)
    taking = asyncio.create_task(console.take("one"))
    engine.allow(1)
    await until(lambda: heard(console)._answer)
    console.interrupt()
    console.interrupt()
    await asyncio.wait_for(taking, 10)
    assert heard(console).answers == ["1 "]
    assert heard(console).remarks == [EN.stopped]


async def test_a_message_without_an_answer_is_offered_again(open_: Open, stepper: Callable[..., Stepper]) -> None:
    engine = stepper(fail_at=0)
    console = await open_(engine)
    engine.allow(1)
    await take(console, "//please")
    assert heard(console).complaints[0].startswith("The model failed to answer.")
    assert console.draft == "//please"


@pytest.mark.parametrize("kind", ["local", "remote"])
async def test_one_who_is_to_come_back_is_told_when(kind: str) -> None:
    chat_stream = ChatStream(engine=Engine())
    async with AsyncExitStack() as stack:
        if kind == "local":
            backend: Backend = LocalBackend(await stack.enter_async_context(chat_stream), "here")
        else:
            server = await stack.enter_async_context(running_server(chat_stream))
            backend = await stack.enter_async_context(ServerBackend(server.url, EN))
        chat_stream.drain()
        console = Console(backend, Heard(), EN)
        await take(console, "please")
    assert heard(console).complaints == ["The server is shutting down and takes no new requests. Try again in 5 s."]
    assert console.draft == "please"


async def test_what_a_cookie_has_no_room_for_is_told(remote: Open) -> None:
    storage = CookieStorage([Fernet.generate_key()])
    console = await remote(Engine(), storage, max_new_tokens=5000, context_len=6000)
    counts = [500, 500, 500, 3000]
    await take(console, *(" ".join(str(n * factor) for n in range(count)) for factor, count in enumerate(counts, 7919)))
    notes = [remark for remark in heard(console).remarks if remark.startswith("(")]
    assert notes == [EN.dropped.format(count=1), EN.not_stored]
    assert len((await console.backend.save()).messages) == 4


@pytest.mark.parametrize("url", ["http://", "http://[", "http://127.0.0.1:99999"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not a URL such as http://127"):
        ServerBackend(url, EN)


def test_a_password_in_the_url_is_not_shown() -> None:
    assert ServerBackend("http://me:sesame@127.0.0.1:8080/chat_stream", EN).name == "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("event: done\ndata: {}\n\n", "does not answer as an aiochatstream server does"),
        ("event: delta\ndata: rubbish\n\n", "does not answer as an aiochatstream server does"),
        ("event: other\ndata: {}\n\n", "does not answer as an aiochatstream server does (event 'other')."),
        ("", "broke before the answer was complete."),
    ],
)
async def test_a_server_that_answers_something_else_is_told_in_a_sentence(
    body: str, sentence: str, aiohttp_server: Any
) -> None:
    async def history(request: web.Request) -> web.Response:
        return web.json_response({"messages": []})

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=body, content_type="text/event-stream")

    app = web.Application()
    app.add_routes([web.get("/history", history), web.post("/chat_stream", answer)])
    server = await aiohttp_server(app)
    async with ServerBackend(str(server.make_url("/")), EN) as backend:
        console = Console(backend, Heard(), EN)
        screen = await take(console, "hello")
    assert sentence in screen.complaints[0]
    assert console.draft == "hello"


async def test_a_message_sent_again_continues_without_the_lost_answer(aiohttp_server: Any) -> None:
    bodies: list[Any] = []

    async def history(request: web.Request) -> web.Response:
        return web.json_response({"messages": []})

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        if len(bodies) == 1:
            return web.json_response({"error": "answer_elsewhere", "detail": "Held by another worker."}, status=409)
        done = {"message_id": "1", "finish_reason": "stop", "usage": {}, "timing": {}}
        return web.Response(text=f"event: done\ndata: {json.dumps(done)}\n\n", content_type="text/event-stream")

    app = web.Application()
    app.add_routes([web.get("/history", history), web.post("/chat_stream", answer)])
    server = await aiohttp_server(app)
    async with ServerBackend(str(server.make_url("/")), EN) as backend:
        await take(Console(backend, Heard(), EN), "hello", "hello", "next")
    assert [body.get("abandon_lost", False) for body in bodies] == [False, True, False]
