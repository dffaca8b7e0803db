"""The console, with a model in this process and with a server."""

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
from pytest_aiohttp.plugin import AiohttpServer

from aiochatstream import ChatStream, CookieStorage, GenerationParams, Limits, ScriptedEngine
from aiochatstream.console.backend import Backend
from aiochatstream.console.console import Console
from aiochatstream.console.local import LocalBackend
from aiochatstream.console.remote import ServerBackend
from aiochatstream.console.screen import Screen
from aiochatstream.conversations.export import ExportedConversation
from aiochatstream.texts import EN
from tests.helpers import STUCK_THOUGHT, THOUGHTFUL, DeltaEngine, Stepper, running_server, until


class RecordingScreen(Screen):
    """A screen that records its output."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.notes: list[str] = []
        self.replies: list[str] = []
        self.errors: list[str] = []
        self.answer = ""
        """Text of the answer so far."""
        self.thoughts = ""

    def wait(self, reason: str) -> None:
        pass

    def think(self, text: str) -> None:
        self.thoughts += text

    def write(self, text: str) -> None:
        self.answer += text

    def end(self) -> None:
        self.answers += [self.answer] if self.answer else []
        self.answer = ""

    def note(self, text: str) -> None:
        self.notes.append(text)

    def reply(self, text: str) -> None:
        self.replies.append(text)

    def error(self, sentence: str) -> None:
        self.errors.append(sentence)


class RecordingEngine:
    """Engine function that answers "<number of the answer>: <newest message>" and records its arguments."""

    def __init__(self) -> None:
        self.messages: list[list[dict[str, str]]] = []
        self.params: list[GenerationParams] = []

    def __call__(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        self.messages.append(messages)
        self.params.append(params)
        yield f"{len(self.messages)}: "
        yield messages[-1]["content"]


Open = Callable[..., Awaitable[Console]]
NewStepper = Callable[..., Stepper]


def screen_of(console: Console) -> RecordingScreen:
    assert isinstance(console.screen, RecordingScreen)
    return console.screen


async def enter(console: Console, *lines: str) -> RecordingScreen:
    for line in lines:
        await console.handle(line)
    return screen_of(console)


@pytest.fixture
async def local() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_(engine: Any, **options: Any) -> Console:
            chat_stream = await stack.enter_async_context(ChatStream(engine=engine, **options))
            return Console(LocalBackend(chat_stream, "here"), RecordingScreen(), EN)

        yield open_


@pytest.fixture
async def remote() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_(engine: Any, storage: AbstractStorage | None = None, **options: Any) -> Console:
            server = await stack.enter_async_context(running_server(ChatStream(engine=engine, **options), storage))
            backend: Backend = await stack.enter_async_context(ServerBackend(server.url + "/", EN))
            return Console(backend, RecordingScreen(), EN)

        yield open_


@pytest.fixture(params=["local", "remote"])
def open_(request: pytest.FixtureRequest, local: Open, remote: Open) -> Open:
    return {"local": local, "remote": remote}[request.param]


async def test_messages_regenerate_and_clear(open_: Open) -> None:
    engine = RecordingEngine()
    console = await open_(engine)
    screen = await enter(console, "日本語で", "  \n", "two", "/regenerate", "/clear", "/clear", "new")
    assert screen.answers == ["1: 日本語で", "2: two", "3: two", "4: new"]
    assert [len(messages) for messages in engine.messages] == [1, 3, 3, 1]
    assert screen.replies == [EN.cleared, EN.nothing_to_clear]
    assert (screen.errors, console.draft) == ([], "")


async def test_statistics_follow_each_answer_and_stats_shows_all(open_: Open) -> None:
    console = await open_(RecordingEngine())
    screen = await enter(console, "/stats", "one", "two", "/stats")
    assert screen.replies[0] == EN.no_stats
    assert all(note.startswith("2 tokens") and "first after" in note for note in screen.notes)
    last, every = screen.replies[1].splitlines()
    assert last.startswith("last answer: 2 tokens")
    assert every.startswith("all 2: 4 tokens")
    assert every.endswith("0 prompt tokens, 0 of them cached")


async def test_thoughts_are_separate_from_the_answer_and_counted(open_: Open) -> None:
    console = await open_(DeltaEngine(*THOUGHTFUL))
    screen = await enter(console, "Two and two?", "/stats")
    assert (screen.thoughts, screen.answers) == ("Let me see.", ["It is four."])
    assert screen.notes[0].startswith("7 tokens · 4 of them for thinking · ")
    assert screen.replies[0].splitlines()[1].startswith("all 1: 7 tokens · 4 of them for thinking · ")
    assert (await console.backend.save()).messages[1].content == "It is four."


async def test_a_note_says_that_the_maximum_length_was_reached_while_thinking(open_: Open) -> None:
    console = await open_(DeltaEngine(*STUCK_THOUGHT))
    screen = await enter(console, "Two and two?")
    assert screen.notes[0] == EN.cut_thinking
    assert (screen.answers, console.draft) == ([], "")


async def test_params_apply_to_the_next_answers(open_: Open) -> None:
    engine = RecordingEngine()
    console = await open_(engine, params=GenerationParams(temperature=1.5, top_k=7))
    screen = await enter(console, "/params", "/params temperature 0.25 stop '[\"二\"]'", "one 二 three")
    assert screen.replies[1].splitlines() == ["temperature 0.25", 'stop ["二"]']
    assert screen.replies[0].startswith("No parameters are set")
    assert (engine.params[0].temperature, engine.params[0].top_k, engine.params[0].stop) == (0.25, 7, ("二",))
    assert screen.answers == ["1: one "]
    screen = await enter(console, "/params temperature default stop default", "two")
    assert engine.params[1].temperature == 1.5
    assert screen.replies[2] == screen.replies[0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/params temperature 3", "temperature: must be a number from 0 (greedy) to 2."),
        ("/params temperature hot", "temperature: must be a number from 0 (greedy) to 2."),
        ("/params heat 3", "Unknown parameter heat; choose from max_new_tokens, "),
        ("/params temperature", "/params needs pairs of names and values"),
        ("/params stop '[", "No closing quotation"),
        ("/params stop " + "[" * 100_000, "stop: must be a list of up to 16 strings"),
        ("/regenrate", "Unknown command /regenrate. Did you mean /regenerate?"),
        ("/xyzzy", "Unknown command /xyzzy. /help lists all commands"),
        ("/save", "/save needs a file name."),
        ("/load {folder}", "{folder}: Is a directory."),
        ("/save {folder}/missing/file", "{folder}/missing/file: No such file or directory."),
        ("/load {folder}/missing", "{folder}/missing: No such file or directory."),
        ("/load {folder}/notes", "{folder}/notes is not a conversation file: "),
        ("/load {folder}/odd", "{folder}/odd is not a conversation file: messages: must alternate"),
        ("/regenerate", "This conversation has no message to answer again."),
    ],
)
async def test_an_error_is_one_sentence_and_changes_nothing(
    line: str, sentence: str, open_: Open, tmp_path: Path
) -> None:
    (tmp_path / "notes").write_bytes(b"\xff rubbish")
    (tmp_path / "odd").write_text('{"messages": [{"role": "user", "content": "x"}]}')
    console = await open_(RecordingEngine())
    screen = await enter(console, line.format(folder=tmp_path) if "{folder}" in line else line, "//still here")
    assert len(screen.errors) == console.failures == 1
    assert screen.errors[0].startswith(sentence.replace("{folder}", str(tmp_path)))
    assert screen.answers == ["1: /still here"]
    assert screen.replies == []


async def test_params_are_checked_against_the_limits_of_the_model(local: Open) -> None:
    console = await local(RecordingEngine(), params=GenerationParams(max_new_tokens=8))
    screen = await enter(console, "/params max_new_tokens 9", "one")
    assert screen.errors == ["params.max_new_tokens: must be from 1 to 8 on this server."]
    assert screen.answers == ["1: one"]
    engine = ScriptedEngine()
    engine.vocab_size = 100
    screen = await enter(await local(engine), """/params logit_bias '{"100": 1}'""")
    assert screen.errors == ["params.logit_bias: token id 100 is out of range; the vocabulary has 100 tokens."]


async def test_help_lists_every_command_and_exit_leaves(open_: Open) -> None:
    console = await open_(RecordingEngine())
    screen = await enter(console, "/help")
    names = [line.split()[0] for line in screen.replies[0].splitlines() if line.startswith("/") and "//" not in line]
    assert names == [
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
    await enter(console, "/exit")
    assert console.leaving


async def test_the_system_prompt_can_be_shown_set_and_reset(open_: Open) -> None:
    engine = RecordingEngine()
    console = await open_(engine, allow_system_prompt=True)
    screen = await enter(console, "/system", "/system 猫として話す。", "one", "/system default", "two")
    assert screen.replies == [EN.default_system, "System prompt: 猫として話す。", EN.default_system]
    assert engine.messages[0][0] == {"role": "system", "content": "猫として話す。"}
    assert [message["role"] for message in engine.messages[1]] == ["user", "assistant", "user"]


async def test_a_server_may_forbid_system_prompts_and_still_load_conversations(remote: Open, tmp_path: Path) -> None:
    engine = RecordingEngine()
    console = await remote(engine)
    file = tmp_path / "talk.json"
    screen = await enter(
        console, "/system be a cat", "/system", "one", f"/save {file}", "/clear", f"/load {file}", "two"
    )
    assert screen.errors == [EN.server_sets_system]
    assert screen.answers == ["1: one", "2: two"]
    assert [message["content"] for message in engine.messages[1]] == ["one", "1: one", "two"]


async def test_a_saved_conversation_continues_with_a_model_in_this_process(
    open_: Open, local: Open, tmp_path: Path
) -> None:
    file = tmp_path / "会話 1.json"
    await enter(await open_(RecordingEngine()), "こんにちは", "two", f"/save {file}")
    assert "こんにちは" in file.read_text(encoding="utf-8")

    engine = RecordingEngine()
    console = await local(engine)
    screen = await enter(console, "forgotten", f"/load {file}", "three")
    assert screen.replies == [f"2 turns loaded from {file}."]
    assert [message["content"] for message in engine.messages[1]] == [
        "こんにちは",
        "1: こんにちは",
        "two",
        "2: two",
        "three",
    ]


async def test_a_saved_conversation_includes_its_system_prompt_and_interrupted_answers(
    open_: Open, stepper: NewStepper, tmp_path: Path
) -> None:
    engine, file = stepper(), tmp_path / "talk.json"
    console = await open_(engine, allow_system_prompt=True)
    await enter(console, "/system be a cat")
    await interrupt_answer(console, engine, "Count")
    await enter(console, f"/save {file}")
    saved = json.loads(file.read_text())
    assert saved["system"] == "be a cat"
    assert [message.get("state") for message in saved["messages"]] == [None, "interrupted"]
    another = await open_(RecordingEngine(), allow_system_prompt=True)
    screen = await enter(another, f"/load {file}")
    assert screen.replies[-1] == "System prompt: be a cat"
    assert await another.backend.get_system() == "be a cat"
    assert await another.backend.save() == ExportedConversation.read(file)


async def interrupt_answer(console: Console, engine: Stepper, line: str) -> None:
    """Enter ``line`` and interrupt the answer after one step."""
    task = asyncio.create_task(console.handle(line))
    engine.allow(1)
    await until(lambda: screen_of(console).answer)
    console.interrupt()
    while not task.done():
        engine.allow(1)
        await asyncio.wait({task}, timeout=0.05)
    await task


async def test_an_interrupted_answer_is_marked_and_stored(open_: Open, stepper: NewStepper) -> None:
    engine = stepper()
    console = await open_(engine)
    for line in ("one", "two"):
        await interrupt_answer(console, engine, line)
    screen = screen_of(console)
    assert [answer.split()[0] for answer in screen.answers] == ["1", "1"]
    assert screen.notes.count(EN.stopped) == 2
    assert (screen.errors, console.draft) == ([], "")
    saved = await console.backend.save()
    assert [message.content for message in saved.messages[::2]] == ["one", "two"]
    assert {message.state for message in saved.messages[1::2]} == {"interrupted"}


async def test_a_second_interrupt_abandons_the_answer(open_: Open, stepper: NewStepper) -> None:
    engine = stepper()
    console = await open_(engine)
    task = asyncio.create_task(console.handle("one"))
    engine.allow(1)
    await until(lambda: screen_of(console).answer)
    console.interrupt()
    console.interrupt()
    await asyncio.wait_for(task, 10)
    assert screen_of(console).answers == ["1 "]
    assert screen_of(console).notes == [EN.stopped]


async def test_a_message_without_an_answer_is_offered_again(open_: Open, stepper: NewStepper) -> None:
    engine = stepper(fail_at=0)
    console = await open_(engine)
    engine.allow(1)
    await enter(console, "//please")
    assert screen_of(console).errors[0].startswith("The model failed to answer.")
    assert console.draft == "//please"


@pytest.mark.parametrize("kind", ["local", "remote"])
async def test_an_error_reports_when_to_try_again(kind: str) -> None:
    chat_stream = ChatStream(engine=RecordingEngine())
    async with AsyncExitStack() as stack:
        if kind == "local":
            backend: Backend = LocalBackend(await stack.enter_async_context(chat_stream), "here")
        else:
            server = await stack.enter_async_context(running_server(chat_stream))
            backend = await stack.enter_async_context(ServerBackend(server.url, EN))
        chat_stream.drain()
        console = Console(backend, RecordingScreen(), EN)
        await enter(console, "please")
    assert screen_of(console).errors == ["The server is shutting down and accepts no new requests. Try again in 5 s."]
    assert console.draft == "please"


async def test_dropped_and_unstored_turns_are_reported(remote: Open) -> None:
    storage = CookieStorage([Fernet.generate_key()])
    console = await remote(
        RecordingEngine(), storage, params=GenerationParams(max_new_tokens=5000), limits=Limits(context_len=6000)
    )
    counts = [500, 500, 500, 3000]
    await enter(
        console, *(" ".join(str(n * factor) for n in range(count)) for factor, count in enumerate(counts, 7919))
    )
    notes = [note for note in screen_of(console).notes if note.startswith("(")]
    assert notes == [EN.dropped.format(count=1), EN.not_stored]
    assert len((await console.backend.save()).messages) == 4


@pytest.mark.parametrize("url", ["http://", "http://[", "http://127.0.0.1:99999"])
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not a URL such as http://127"):
        ServerBackend(url, EN)


def test_a_password_in_the_url_is_not_shown() -> None:
    assert ServerBackend("http://me:sesame@127.0.0.1:8080/chat_stream", EN).name == "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("event: done\ndata: {}\n\n", "does not respond like an aiochatstream server"),
        ("event: delta\ndata: rubbish\n\n", "does not respond like an aiochatstream server"),
        ("event: other\ndata: {}\n\n", "does not respond like an aiochatstream server (unknown event 'other')."),
        ("", "broke before the answer was complete."),
    ],
)
async def test_an_error_reports_invalid_responses(body: str, sentence: str, aiohttp_server: AiohttpServer) -> None:
    async def history(request: web.Request) -> web.Response:
        return web.json_response({"messages": []})

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=body, content_type="text/event-stream")

    app = web.Application()
    app.add_routes([web.get("/history", history), web.post("/chat_stream", answer)])
    server = await aiohttp_server(app)
    async with ServerBackend(str(server.make_url("/")), EN) as backend:
        console = Console(backend, RecordingScreen(), EN)
        screen = await enter(console, "hello")
    assert sentence in screen.errors[0]
    assert console.draft == "hello"


async def test_a_message_sent_again_abandons_the_lost_answer(aiohttp_server: AiohttpServer) -> None:
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
        await enter(Console(backend, RecordingScreen(), EN), "hello", "hello", "next")
    assert [body.get("abandon_lost", False) for body in bodies] == [False, True, False]


@pytest.mark.parametrize("thinking_tokens", [{}, {"thinking_tokens": 2}])
async def test_answers_of_older_servers_without_thinking_tokens_are_readable(
    thinking_tokens: dict[str, int], aiohttp_server: AiohttpServer
) -> None:
    async def history(request: web.Request) -> web.Response:
        return web.json_response({"messages": []})

    async def answer(request: web.Request) -> web.Response:
        usage = {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 3, **thinking_tokens}
        timing = {"queue_s": 0.0, "ttft_s": 0.1, "total_s": 0.2}
        done = {"message_id": "1", "finish_reason": "stop", "usage": usage, "timing": timing}
        events = [("thinking", {"text": "Hm."}), ("delta", {"text": "Hello"}), ("done", done)]
        text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
        return web.Response(text=text, content_type="text/event-stream")

    app = web.Application()
    app.add_routes([web.get("/history", history), web.post("/chat_stream", answer)])
    server = await aiohttp_server(app)
    async with ServerBackend(str(server.make_url("/")), EN) as backend:
        console = Console(backend, RecordingScreen(), EN)
        screen = await enter(console, "hello", "/stats")
    assert (screen.answers[:1], screen.errors) == (["Hello"], [])
    assert console.stats.answers[0].usage.thinking_tokens == thinking_tokens.get("thinking_tokens", 0)
