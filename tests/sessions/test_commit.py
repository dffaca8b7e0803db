"""Commit tokens, with which clients put streamed answers into their cookies on any worker."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import pytest
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, Conversation, CookieStorage, Delta, GenerationParams, Limits, Turn
from aiochatstream.errors import BadRequest
from aiochatstream.sessions.commit import PURPOSE, Commit
from tests.helpers import Client, ClientOf, DeltaEngine, MakeStepper, Server, StartServer, echo, sse_events
from tests.sessions.users import moved

KEY = Fernet.generate_key()

COMMIT = Commit("user", "main", 0, "", "id", Turn("Hello", "Hi", "id"), replaces=0, context_turns=0)


class StartWorker(Protocol):
    """Starts another worker, by default with an engine that echoes."""

    async def __call__(self, chat_stream: ChatStream | None = None, *, keys: Sequence[bytes] = (KEY,)) -> Server: ...


@pytest.fixture
def start_worker(start: StartServer) -> StartWorker:
    """Return a function that starts another worker with the same key."""

    async def start_worker(chat_stream: ChatStream | None = None, *, keys: Sequence[bytes] = (KEY,)) -> Server:
        return await start(chat_stream or ChatStream(engine=echo), CookieStorage(keys))

    return start_worker


async def streamed(client: Client, text: str | None = None, **body: Any) -> dict[str, Any]:
    """Stream an answer and return its last event."""
    async with client.post(accept="text/event-stream", user_input=text, **body) as response:
        assert response.status == 200, await response.text()
        events = [event async for event in sse_events(response)]
    assert events[-1][0] in ("done", "error")
    return events[-1][1]


async def commit(client: Client, token: str) -> tuple[int, dict[str, Any]]:
    async with client.post("/commit", commit=token) as response:
        return response.status, await response.json()


async def committed(client: Client, text: str | None = None, **body: Any) -> None:
    """Stream an answer and commit it."""
    last = await streamed(client, text, **body)
    status, answer = await commit(client, last["commit"])
    assert (status, answer.get("turn")) == (200, last["turn"]), answer


async def test_a_committed_answer_is_available_on_every_worker(start_worker: StartWorker, client_of: ClientOf) -> None:
    client = client_of(await start_worker())
    await committed(client, "one")
    client = moved(client, await start_worker())
    await committed(client, "two")
    assert await moved(client, await start_worker()).texts() == ["one", "one ", "two", "two "]


async def test_another_worker_accepts_a_commit_token(start_worker: StartWorker, client_of: ClientOf) -> None:
    client = client_of(await start_worker())
    last = await streamed(client, "one")
    other = moved(client, await start_worker())
    async with other.session.get(f"{other.url}/history") as response:
        assert (await response.json())["error"] == "answer_elsewhere"
    assert (await commit(other, last["commit"]))[0] == 200
    assert await other.texts() == ["one", "one "]


async def test_a_commit_token_restores_an_abandoned_answer(start_worker: StartWorker, client_of: ClientOf) -> None:
    client = client_of(await start_worker())
    await committed(client, "one")
    last = await streamed(client, "two")
    other = moved(client, await start_worker())
    async with other.session.get(f"{other.url}/history?abandon_lost=true") as response:
        assert len((await response.json())["messages"]) == 2
    assert (await commit(other, last["commit"]))[0] == 200
    assert await other.texts() == ["one", "one ", "two", "two "]


async def test_a_repeated_commit_token_changes_nothing(start_worker: StartWorker, client_of: ClientOf) -> None:
    client = client_of(await start_worker())
    last = await streamed(client, "one")
    for _ in range(2):
        status, answer = await commit(client, last["commit"])
        assert (status, answer["turn"]) == (200, 1)
    assert await moved(client, await start_worker()).texts() == ["one", "one "]


async def test_a_commit_token_of_an_earlier_turn_is_refused(start_worker: StartWorker, client_of: ClientOf) -> None:
    client = client_of(await start_worker())
    last = await streamed(client, "one")
    await commit(client, last["commit"])
    await committed(client, "two")
    status, answer = await commit(client, last["commit"])
    assert (status, answer["error"]) == (409, "conversation_changed")
    assert await client.texts() == ["one", "one ", "two", "two "]


async def test_a_commit_token_does_not_restore_a_cleared_conversation(
    start_worker: StartWorker, client_of: ClientOf
) -> None:
    client = client_of(await start_worker())
    last = await streamed(client, "secret")
    async with client.post("/clear_context") as response:
        assert response.status == 200
    assert (await commit(client, last["commit"]))[0] == 409
    assert await client.texts() == []


async def test_a_commit_token_of_another_user_is_refused(start_worker: StartWorker, client_of: ClientOf) -> None:
    server = await start_worker()
    owner, other = client_of(server), client_of(server)
    last = await streamed(owner, "secret")
    await committed(other, "mine")
    for stranger in (other, client_of(server)):
        status, answer = await commit(stranger, last["commit"])
        assert (status, answer["error"]) == (409, "conversation_changed")
        assert "secret" not in await stranger.texts()


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "é",
        Fernet(Fernet.generate_key()).encrypt(b"commit:").decode(),
        Fernet(KEY).encrypt(b"other purpose").decode(),
        Fernet(KEY).encrypt_at_time(b"commit:", 1_000_000_000).decode(),
    ],
    ids=["empty", "ascii", "not ascii", "another key", "another purpose", "old"],
)
async def test_an_invalid_or_expired_commit_token_is_a_bad_request(
    start_worker: StartWorker, client_of: ClientOf, token: str
) -> None:
    client = client_of(await start_worker())
    await committed(client, "one")
    status, answer = await commit(client, token)
    assert (status, answer["error"]) == (400, "bad_request")
    assert answer["detail"].startswith("commit: must be a token")


def test_a_modified_commit_token_is_refused() -> None:
    token = COMMIT.seal(Fernet(KEY))
    assert Commit.open(token, Fernet(KEY)) == COMMIT
    data = base64.urlsafe_b64decode(token)
    for index in range(len(data)):
        changed = bytes([*data[:index], data[index] ^ 1, *data[index + 1 :]])
        with pytest.raises(BadRequest):
            Commit.open(base64.urlsafe_b64encode(changed).decode(), Fernet(KEY))


def test_commit_tokens_and_cookies_are_not_interchangeable() -> None:
    assert Fernet(KEY).decrypt(COMMIT.seal(Fernet(KEY)).encode()).startswith(PURPOSE)
    with pytest.raises(BadRequest):
        Commit.open(Fernet(KEY).encrypt(b'{"session": {}}').decode(), Fernet(KEY))


async def test_a_commit_token_remains_valid_after_key_rotation(start_worker: StartWorker, client_of: ClientOf) -> None:
    client = client_of(await start_worker())
    last = await streamed(client, "one")
    rotated = moved(client, await start_worker(keys=[Fernet.generate_key(), KEY]))
    assert (await commit(rotated, last["commit"]))[0] == 200
    assert await rotated.texts() == ["one", "one "]


async def test_regenerated_and_edited_answers_can_be_committed(
    start_worker: StartWorker, client_of: ClientOf, stepper: MakeStepper
) -> None:
    engine = stepper()
    client = client_of(await start_worker(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2))))
    engine.allow(100)
    await committed(client, "one")
    await committed(client, "two")
    await committed(client, regenerate=True)
    assert await client.texts() == ["one", "1 2 ", "two", "1 2 "]
    first = (await client.history())[1]["message_id"]
    await committed(client, "another", edit_message_id=first)
    other = moved(client, await start_worker())
    assert await other.texts() == ["another", "1 2 "]


async def test_an_answer_too_large_for_a_cookie_is_reported_and_not_stored(
    start_worker: StartWorker, client_of: ClientOf
) -> None:
    client = client_of(
        await start_worker(
            ChatStream(engine=echo, params=GenerationParams(max_new_tokens=5000), limits=Limits(context_len=6000))
        )
    )
    await committed(client, "short")
    last = await streamed(client, " ".join(str(number * 7919) for number in range(3000)))
    assert last["stored"] is False
    assert "dropped_turns" not in last
    assert (await commit(client, last["commit"]))[0] == 200
    other = moved(client, await start_worker())
    assert await other.texts() == ["short", "short "]
    await committed(other, "again")
    assert await other.texts() == ["short", "short ", "again", "again "]


async def test_dropped_turns_are_counted(start_worker: StartWorker, client_of: ClientOf) -> None:
    client = client_of(await start_worker())
    dropped = remaining = 0
    for turn in range(30):
        last = await streamed(client, f"{turn} " + " ".join(str(turn * number) for number in range(120)))
        dropped += last.get("dropped_turns", 0)
        status, answer = await commit(client, last["commit"])
        assert status == 200
        # other turns were dropped before the answer, for the message id in the cookie
        assert answer.get("dropped_turns", 0) <= last.get("dropped_turns", 0)
        remaining = len(await moved(client, await start_worker()).texts()) // 2
        assert dropped + remaining == turn + 1
    assert dropped > 10
    assert remaining > 3


@pytest.mark.parametrize(("fails_at", "saved"), [(0, []), (1, ["two", "1 "])])
async def test_after_a_failure_every_worker_continues_with_the_text_that_there_was(
    start_worker: StartWorker, client_of: ClientOf, stepper: MakeStepper, fails_at: int, saved: list[str]
) -> None:
    engine = stepper()
    engine.allow(100)
    client = client_of(await start_worker(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2))))
    await committed(client, "one")
    engine.fail_at = fails_at
    last = await streamed(client, "two")
    assert last["error"]["error"] == "internal_server_error"
    assert (await commit(client, last["commit"]))[0] == 200
    other = moved(client, await start_worker())
    assert await other.texts() == ["one", "1 2 ", *saved]
    await committed(other, "three")
    assert await other.texts() == ["one", "1 2 ", *saved, "three", "three "]


async def test_a_commit_token_can_extend_an_older_cookie(start_worker: StartWorker, client_of: ClientOf) -> None:
    client = client_of(await start_worker())
    await committed(client, "one")
    old = {cookie.key: cookie.value for cookie in client.session.cookie_jar}
    last = await streamed(client, "two")
    client.session.cookie_jar.clear()
    client.session.cookie_jar.update_cookies(old)  # as if the response to another tab arrived later
    other = moved(client, await start_worker())
    assert await other.texts() == ["one", "one "]
    client.session.cookie_jar.clear()
    client.session.cookie_jar.update_cookies(old)
    assert (await commit(other, last["commit"]))[0] == 200
    assert await other.texts() == ["one", "one ", "two", "two "]


async def test_sessions_outside_cookies_have_no_commit_tokens(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    last = await streamed(client, "one")
    assert "commit" not in last
    status, answer = await commit(client, COMMIT.seal(Fernet(KEY)))
    assert (status, answer["error"]) == (400, "bad_request")


def test_a_commit_without_an_answer_adds_no_turn() -> None:
    before = replace(COMMIT, turn=None)
    conversation = before.applied_to(COMMIT.applied_to(before.applied_to(Conversation())))
    assert [turn.user for turn in conversation.turns] == ["Hello"]


def test_a_token_without_thoughts_is_readable_by_earlier_versions() -> None:
    fernet = Fernet(KEY)
    token = COMMIT.seal(fernet)
    data = json.loads(zlib.decompress(fernet.decrypt(token.encode()).removeprefix(PURPOSE)))
    assert data["turn"] == {"user": "Hello", "answer": "Hi", "message_id": "id", "state": "complete"}


async def test_a_committed_answer_has_no_thoughts(start_worker: StartWorker, client_of: ClientOf) -> None:
    thought = os.urandom(20_000).hex()  # no cookie could hold it
    deltas = (Delta(thinking=thought), Delta("Hi", finish_reason="stop"))
    client = client_of(await start_worker(ChatStream(engine=DeltaEngine(*deltas))))
    last = await streamed(client, "one")
    assert "stored" not in last
    assert len(last["commit"]) < 1000
    client = moved(client, await start_worker())
    assert (await commit(client, last["commit"]))[0] == 200
    assert [message.get("thinking") for message in await client.history()] == [None, None]
    assert await client.texts() == ["one", "Hi"]
