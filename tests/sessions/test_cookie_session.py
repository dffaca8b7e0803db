"""Conversations in encrypted cookies of a real server."""

from __future__ import annotations

import asyncio
import random
from typing import Protocol

import pytest
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, Conversation, CookieStorage, GenerationParams, MemoryConversationStore, Turn
from aiochatstream.sessions.cookie_session import pack, unpack
from aiochatstream.sessions.session_storage import MAX_COOKIE_BYTES
from tests.helpers import (
    Client,
    ClientOf,
    MakeStepper,
    Server,
    StartServer,
    Stepper,
    echo,
    post_bytes,
    until,
)
from tests.sessions.users import moved

KEY = Fernet.generate_key()


class StartWorker(Protocol):
    """Starts another worker with the same key, by default with an engine that echoes."""

    async def __call__(self, chat_stream: ChatStream | None = None) -> Server: ...


@pytest.fixture(params=["CookieStorage", "EncryptedCookieStorage"])
def start_worker(start: StartServer, request: pytest.FixtureRequest) -> StartWorker:
    """Return a function that starts another worker, with each kind of storage in turn."""

    async def start_worker(chat_stream: ChatStream | None = None) -> Server:
        is_own = request.param == "CookieStorage"
        storage = CookieStorage(KEY) if is_own else EncryptedCookieStorage(Fernet(KEY), samesite="Lax")
        return await start(chat_stream or ChatStream(engine=echo), storage)

    return start_worker


def cookie(client: Client) -> str:
    return next(iter(client.session.cookie_jar)).value


async def ask(client: Client, text: str, accept: str = "text/plain") -> str:
    async with client.post(accept=accept, user_input=text) as response:
        body = await response.text()
        assert response.status == 200, body
        return body


async def stream(client: Client, engine: Stepper, text: str) -> None:
    """Stream an answer that ends after the headers were sent."""
    engine.allow(1)
    async with client.post(user_input=text) as response:
        engine.allow(1)
        assert await response.text() == "1 2 "


@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
async def test_the_cookie_stores_several_turns_encrypted(
    start_worker: StartWorker, client_of: ClientOf, accept: str
) -> None:
    client = client_of(await start_worker())
    for text in ("unmistakable", "two", "three"):
        await ask(client, text, accept)
    assert await client.texts() == ["unmistakable", "unmistakable ", "two", "two ", "three", "three "]
    assert "unmistakable" not in cookie(client)


async def test_a_json_response_stores_its_answer_in_the_cookie(start_worker: StartWorker, client_of: ClientOf) -> None:
    client = client_of(await start_worker())
    await ask(client, "one", "application/json")
    await ask(client, "two", "application/json")
    other = moved(client, await start_worker())
    assert await other.texts() == ["one", "one ", "two", "two "]


async def test_history_stores_the_last_streamed_answer_in_the_cookie(
    start_worker: StartWorker, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    client = client_of(await start_worker(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2))))
    await stream(client, engine, "one")
    assert await client.texts() == ["one", "1 2 "]
    assert await moved(client, await start_worker()).texts() == ["one", "1 2 "]


async def test_another_worker_reports_answer_elsewhere_and_loses_nothing(
    start_worker: StartWorker, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    client = client_of(await start_worker(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2))))
    await stream(client, engine, "one")
    other = moved(client, await start_worker())
    for pending in (other.post(user_input="two"), other.session.get(f"{other.url}/history")):
        async with pending as response:
            assert response.status == 409
            assert (await response.json())["error"] == "answer_elsewhere"
            assert "Set-Cookie" not in response.headers
    await stream(client, engine, "two")  # the first worker continues
    assert await client.texts() == ["one", "1 2 ", "two", "1 2 "]


async def test_clear_context_abandons_a_lost_answer(
    start_worker: StartWorker, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    client = client_of(await start_worker(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2))))
    await stream(client, engine, "one")
    other = moved(client, await start_worker())
    async with other.post("/clear_context") as response:
        assert (await response.json())["success"] is True
    assert await ask(other, "two") == "two "
    assert await other.texts() == ["two", "two "]
    # the first worker still has "one" in memory, but the cookie is newer
    assert (await client.texts())[0] == "two"


async def test_abandon_lost_continues_without_the_answer_of_an_ended_process(
    start_worker: StartWorker, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    client = client_of(await start_worker(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2))))
    for text in ("one", "two"):
        await stream(client, engine, text)
        await client.texts()  # stores the answer in the cookie
    await stream(client, engine, "three")
    restarted = moved(client, await start_worker())
    async with restarted.post(user_input="four") as response:
        assert (await response.json())["error"] == "answer_elsewhere"
    async with restarted.post(user_input="four", abandon_lost=True) as response:
        assert (response.status, await response.text()) == (200, "four ")
    assert await restarted.texts() == ["one", "1 2 ", "two", "1 2 ", "four", "four "]


async def test_history_with_abandon_lost_abandons_a_lost_answer(
    start_worker: StartWorker, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    client = client_of(await start_worker(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2))))
    await stream(client, engine, "one")
    await client.texts()
    await stream(client, engine, "two")
    restarted = moved(client, await start_worker())
    async with restarted.session.get(f"{restarted.url}/history?abandon_lost=perhaps") as response:
        assert (response.status, (await response.json())["error"]) == (422, "invalid_value")
    cross_site = {"Sec-Fetch-Site": "cross-site"}  # a link on another site's page
    async with restarted.session.get(f"{restarted.url}/history?abandon_lost=true", headers=cross_site) as response:
        assert (response.status, (await response.json())["error"]) == (403, "forbidden")
    async with restarted.session.get(f"{restarted.url}/history?abandon_lost=true") as response:
        assert [message["content"] for message in (await response.json())["messages"]] == ["one", "1 2 "]
    assert await restarted.texts() == ["one", "1 2 "]
    assert await ask(restarted, "three") == "three "


async def test_abandon_lost_has_no_effect_in_the_process_that_has_the_answer(
    start_worker: StartWorker, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    client = client_of(await start_worker(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2))))
    await stream(client, engine, "one")
    async with client.session.get(f"{client.url}/history?abandon_lost=true") as response:
        assert [message["content"] for message in (await response.json())["messages"]] == ["one", "1 2 "]


async def test_an_answer_is_interrupted_if_its_client_disconnects(
    start_worker: StartWorker, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start_worker(ChatStream(engine=engine))
    client = client_of(server)
    engine.allow(1)
    async with client.post(user_input="one") as response:
        assert response.status == 200  # the cookie has arrived; disconnect
    await until(lambda: all(turn.ending for turn in server.chat_stream.running_turns))
    engine.allow(1)
    await until(lambda: server.idle)
    history = await client.history()
    assert [message.get("state") for message in history] == [None, "interrupted"]
    assert history[0]["content"] == "one"


async def test_a_failed_turn_changes_neither_the_cookie_nor_the_history(
    start_worker: StartWorker, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    client = client_of(await start_worker(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=1))))
    engine.allow(1)
    await ask(client, "one")
    before = cookie(client)
    engine.fail_at = 0
    engine.allow(1)
    async with client.post(user_input="two") as response:
        assert response.status == 500
        assert "Set-Cookie" not in response.headers
    assert cookie(client) == before
    engine.fail_at = None
    engine.allow(1)
    await ask(client, "three")
    assert await client.texts() == ["one", "1 ", "three", "1 "]


async def test_concurrent_conversations_of_a_user_are_independent(
    start_worker: StartWorker, client_of: ClientOf
) -> None:
    client = client_of(await start_worker())
    await ask(client, "first")
    await asyncio.gather(
        client.say("a", conversation="a"),
        client.say("b", conversation="b"),
        client.say("c", conversation="c"),
    )
    assert await client.texts() == ["first", "first "]
    for name in "abc":
        assert await client.texts(name) == [name, f"{name} "]


@pytest.mark.parametrize("word", ["word", "日本語"])
async def test_the_oldest_turns_are_dropped_to_fit_the_cookie(
    start_worker: StartWorker, client_of: ClientOf, word: str
) -> None:
    server = await start_worker()
    client = client_of(server)
    letters = random.Random(1)  # noqa: S311
    for turn in range(40):
        text = f"{turn} " + " ".join(f"{word}{letters.randrange(10_000)}" for _ in range(40))
        async with client.post(user_input=text) as response:
            await response.read()
            for value in response.headers.getall("Set-Cookie"):
                assert len(value.encode()) <= MAX_COOKIE_BYTES
    await client.history()
    texts = await moved(client, await start_worker()).texts()
    assert 4 <= len(texts) < 80
    assert texts[-2].startswith("39 ")
    assert [int(text.split(" ")[0]) for text in texts[::2]] == list(range(40 - len(texts) // 2, 40))


async def test_a_forged_cookie_is_a_new_user(start_worker: StartWorker, client_of: ClientOf) -> None:
    server = await start_worker()
    client = client_of(server)
    await ask(client, "secret", "application/json")
    forged = cookie(client)[:-8] + "AAAAAAA="
    client.session.cookie_jar.clear()
    headers = {"Cookie": f"AIOHTTP_SESSION={forged}"}
    async with client.session.get(f"{server.url}/history", headers=headers) as response:
        assert response.status == 200
        assert (await response.json())["messages"] == []


def test_unpack_restores_a_conversation_packed_in_json_safe_characters() -> None:
    conversation = Conversation(
        (Turn("質問 \u0000 🍣", "a" * 500, "id", "interrupted"),), number=3, turn_id="id", first=0
    )
    packed = pack(conversation)
    assert unpack(packed) == conversation
    assert len(packed) < 400
    assert not set('"\\') & set(packed)


async def test_history_is_stable_after_turns_were_dropped(start_worker: StartWorker, client_of: ClientOf) -> None:
    client = client_of(await start_worker())
    for turn in range(30):
        await ask(client, f"{turn} " + " ".join(str(turn * number) for number in range(120)))
    first = await client.texts()
    assert 4 <= len(first) < 60
    assert await client.texts() == first


async def test_fitting_a_long_conversation_takes_few_attempts(
    start_worker: StartWorker, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations: list[Conversation] = []

    def counting_pack(conversation: Conversation) -> str:
        conversations.append(conversation)
        return pack(conversation)

    monkeypatch.setattr("aiochatstream.sessions.cookie_session.pack", counting_pack)
    client = client_of(await start_worker())
    for turn in range(40):
        conversations.clear()
        await ask(client, f"{turn} " + "".join(chr(97 + (turn * number) % 26) for number in range(700)))
        assert len(conversations) <= 14


async def test_a_discarded_answer_does_not_restore_a_cleared_conversation(
    start_worker: StartWorker, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start_worker(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    client = client_of(server)
    await stream(client, engine, "secret")
    await client.history()
    running = asyncio.create_task(ask(client, "second", "application/json"))
    await until(lambda: len(engine.calls) == 2)
    clearing = asyncio.create_task(clear(client))
    await until(lambda: any(turn.ending for turn in server.chat_stream.running_turns))
    engine.allow(1)
    await asyncio.gather(running, clearing)
    assert await client.history() == []


async def test_a_concurrent_answer_does_not_restore_a_cleared_conversation(
    start_worker: StartWorker, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    client = client_of(await start_worker(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2))))
    await stream(client, engine, "secret")
    await client.history()
    running = asyncio.create_task(client.say("hi", conversation="other"))
    await until(lambda: len(engine.calls) == 2)
    await clear(client)
    engine.allow(2)
    await running  # its cookie still contains the cleared conversation
    assert await client.history() == []
    assert await client.texts("other") == ["hi", "1 2 "]


@pytest.mark.parametrize("store", [None, MemoryConversationStore()], ids=["cookie", "store"])
async def test_a_cookie_that_is_not_utf8_is_a_new_user(
    start_worker: StartWorker, store: MemoryConversationStore | None
) -> None:
    server = await start_worker(ChatStream(engine=echo, conversation_store=store))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    request = post_bytes('{"user_input":"hi"}', headers="Connection: close\r\nCookie: AIOHTTP_SESSION=@\r\n")
    writer.write(request.replace(b"@", b"\xff\xfe"))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert b" 200 OK" in answer.splitlines()[0]
    assert b"Set-Cookie" in answer


async def test_a_second_conversation_keeps_its_turns_beside_a_large_one(
    start_worker: StartWorker, client_of: ClientOf
) -> None:
    client = client_of(await start_worker())
    for turn in range(15):
        async with client.post(user_input=f"{turn} " + " ".join(str(turn * n) for n in range(120))) as response:
            await response.read()
    for turn in range(4):
        async with client.post(user_input=f"b{turn}", conversation="b") as response:
            await response.read()
    assert (await client.texts("b"))[::2] == ["b0", "b1", "b2", "b3"]
    assert len(await client.texts()) >= 4


async def test_cleared_conversations_take_no_space_in_the_cookie(
    start_worker: StartWorker, client_of: ClientOf
) -> None:
    client = client_of(await start_worker())
    for number in range(70):
        await client.say("x", conversation=f"c{number}")
        async with client.post("/clear_context", conversation=f"c{number}") as response:
            assert response.status == 200
    for number in range(20):
        await client.say(f"turn {number}")
    assert len(await client.texts()) == 40


async def test_a_message_too_large_for_a_cookie_is_answered_and_not_compressed(
    start_worker: StartWorker, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int] = []

    def counting_pack(conversation: Conversation) -> str:
        packed.append(sum(len(turn.user) for turn in conversation.turns))
        return pack(conversation)

    monkeypatch.setattr("aiochatstream.sessions.cookie_session.pack", counting_pack)
    client = client_of(await start_worker())
    assert len(await ask(client, "x " * 200_000)) == 512  # 256 tokens
    await client.history()
    assert max(packed) <= 32_768


async def clear(client: Client) -> None:
    async with client.post("/clear_context") as response:
        assert response.status == 200
