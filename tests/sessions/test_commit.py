"""Commit tokens: a streamed answer gets into the cookie by way of its client, on whichever worker that asks next."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, Conversation, CookieStorage, Turn
from aiochatstream.errors import BadRequest
from aiochatstream.sessions.commit import PURPOSE, Commit
from tests.helpers import Client, Server, echo, sse_events

KEY = Fernet.generate_key()

COMMIT = Commit("user", "main", 0, "", "id", Turn("Hello", "Hi", "id"), replaces=0, context_turns=0)


@pytest.fixture
def worker(start: Any) -> Any:
    """One more worker process' worth of server, with the same key and an engine that echoes."""

    async def start_one(*, keys: Any = KEY, **options: Any) -> Server:
        server: Server = await start(ChatStream(**{"engine": echo, **options}), CookieStorage(keys))
        return server

    return start_one


def moved(client: Client, server: Server) -> Client:
    """The same user with the same cookies, at another worker."""
    return Client(client.session, server.url)


async def streamed(client: Client, text: str | None = None, **body: Any) -> dict[str, Any]:
    """The last event of a streamed answer."""
    async with client.post(accept="text/event-stream", user_input=text, **body) as response:
        assert response.status == 200, await response.text()
        events = [event async for event in sse_events(response)]
    assert events[-1][0] in ("done", "error")
    return events[-1][1]


async def commit(client: Client, token: str) -> tuple[int, dict[str, Any]]:
    async with client.post("/commit", commit=token) as response:
        return response.status, await response.json()


async def told(client: Client, text: str | None = None, **body: Any) -> None:
    """A whole turn, as a client does it that knows of commit tokens."""
    last = await streamed(client, text, **body)
    status, answer = await commit(client, last["commit"])
    assert (status, answer.get("turn")) == (200, last["turn"]), answer


async def test_a_committed_answer_is_available_on_every_worker(worker: Any, client_of: Any) -> None:
    client = client_of(await worker())
    await told(client, "one")
    client = moved(client, await worker())
    await told(client, "two")
    assert await moved(client, await worker()).texts() == ["one", "one ", "two", "two "]


async def test_another_worker_accepts_a_commit_token(worker: Any, client_of: Any) -> None:
    client = client_of(await worker())
    last = await streamed(client, "one")
    other = moved(client, await worker())
    async with other.session.get(f"{other.url}/history") as response:
        assert (await response.json())["error"] == "answer_elsewhere"
    assert (await commit(other, last["commit"]))[0] == 200
    assert await other.texts() == ["one", "one "]


async def test_a_commit_token_restores_an_abandoned_answer(worker: Any, client_of: Any) -> None:
    client = client_of(await worker())
    await told(client, "one")
    last = await streamed(client, "two")
    other = moved(client, await worker())
    async with other.session.get(f"{other.url}/history?abandon_lost=true") as response:
        assert len((await response.json())["messages"]) == 2
    assert (await commit(other, last["commit"]))[0] == 200
    assert await other.texts() == ["one", "one ", "two", "two "]


async def test_a_repeated_commit_token_changes_nothing(worker: Any, client_of: Any) -> None:
    client = client_of(await worker())
    last = await streamed(client, "one")
    for _ in range(2):
        status, answer = await commit(client, last["commit"])
        assert (status, answer["turn"]) == (200, 1)
    assert await moved(client, await worker()).texts() == ["one", "one "]


async def test_a_commit_token_of_an_earlier_turn_is_refused(worker: Any, client_of: Any) -> None:
    client = client_of(await worker())
    last = await streamed(client, "one")
    await commit(client, last["commit"])
    await told(client, "two")
    status, answer = await commit(client, last["commit"])
    assert (status, answer["error"]) == (409, "conversation_changed")
    assert await client.texts() == ["one", "one ", "two", "two "]


async def test_a_commit_token_does_not_restore_a_cleared_conversation(worker: Any, client_of: Any) -> None:
    client = client_of(await worker())
    last = await streamed(client, "secret")
    async with client.post("/clear_context") as response:
        assert response.status == 200
    assert (await commit(client, last["commit"]))[0] == 409
    assert await client.texts() == []


async def test_a_commit_token_of_another_user_is_refused(worker: Any, client_of: Any) -> None:
    server = await worker()
    one, other = client_of(server), client_of(server)
    last = await streamed(one, "secret")
    await told(other, "mine")
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
        Fernet(KEY).encrypt(b"no purpose").decode(),
        Fernet(KEY).encrypt_at_time(b"commit:", 1_000_000_000).decode(),
    ],
    ids=["empty", "ascii", "not ascii", "another key", "another purpose", "old"],
)
async def test_an_invalid_or_expired_commit_token_is_a_bad_request(worker: Any, client_of: Any, token: str) -> None:
    client = client_of(await worker())
    await told(client, "one")
    status, answer = await commit(client, token)
    assert (status, answer["error"]) == (400, "bad_request")
    assert answer["detail"].startswith("commit: must be a token")


def test_a_modified_commit_token_is_refused() -> None:
    token = COMMIT.seal(Fernet(KEY))
    assert Commit.open(token, Fernet(KEY)) == COMMIT
    data = base64.urlsafe_b64decode(token)
    for at in range(len(data)):
        changed = bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]])
        with pytest.raises(BadRequest):
            Commit.open(base64.urlsafe_b64encode(changed).decode(), Fernet(KEY))


def test_commit_tokens_and_cookies_are_not_interchangeable() -> None:
    assert Fernet(KEY).decrypt(COMMIT.seal(Fernet(KEY)).encode()).startswith(PURPOSE)
    with pytest.raises(BadRequest):
        Commit.open(Fernet(KEY).encrypt(b'{"session": {}}').decode(), Fernet(KEY))


async def test_a_commit_token_remains_valid_after_key_rotation(worker: Any, client_of: Any) -> None:
    client = client_of(await worker())
    last = await streamed(client, "one")
    rotated = moved(client, await worker(keys=[Fernet.generate_key(), KEY]))
    assert (await commit(rotated, last["commit"]))[0] == 200
    assert await rotated.texts() == ["one", "one "]


async def test_regenerated_and_edited_answers_can_be_committed(worker: Any, client_of: Any, stepper: Any) -> None:
    engine = stepper()
    client = client_of(await worker(engine=engine, max_new_tokens=2))
    engine.allow(100)
    await told(client, "one")
    await told(client, "two")
    await told(client, regenerate=True)
    assert await client.texts() == ["one", "1 2 ", "two", "1 2 "]
    first = (await client.history())[1]["message_id"]
    await told(client, "another", edit_message_id=first)
    other = moved(client, await worker())
    assert await other.texts() == ["another", "1 2 "]


async def test_an_answer_too_large_for_a_cookie_is_reported_and_not_stored(worker: Any, client_of: Any) -> None:
    client = client_of(await worker(max_new_tokens=5000, context_len=6000))
    await told(client, "short")
    last = await streamed(client, " ".join(str(number * 7919) for number in range(3000)))
    assert last["stored"] is False
    assert "dropped_turns" not in last
    assert (await commit(client, last["commit"]))[0] == 200
    other = moved(client, await worker())
    assert await other.texts() == ["short", "short "]
    await told(other, "again")
    assert await other.texts() == ["short", "short ", "again", "again "]


async def test_dropped_turns_are_counted(worker: Any, client_of: Any) -> None:
    client = client_of(await worker())
    dropped = kept = 0
    for turn in range(30):
        last = await streamed(client, f"{turn} " + " ".join(str(turn * number) for number in range(120)))
        dropped += last.get("dropped_turns", 0)
        status, answer = await commit(client, last["commit"])
        assert status == 200
        # the rest went before the answer, where the message id that the cookie waits for took its room
        assert answer.get("dropped_turns", 0) <= last.get("dropped_turns", 0)
        kept = len(await moved(client, await worker()).texts()) // 2
        assert dropped + kept == turn + 1
    assert dropped > 10
    assert kept > 3


@pytest.mark.parametrize("fails_at", [0, 1])
async def test_after_a_failure_every_worker_continues_with_the_previous_turn(
    worker: Any, client_of: Any, stepper: Any, fails_at: int
) -> None:
    engine = stepper()
    engine.allow(100)
    client = client_of(await worker(engine=engine, max_new_tokens=2))
    await told(client, "one")
    engine.fail_at = fails_at
    last = await streamed(client, "two")
    assert last["error"]["error"] == "internal_server_error"
    assert (await commit(client, last["commit"]))[0] == 200
    other = moved(client, await worker())
    assert await other.texts() == ["one", "1 2 "]
    await told(other, "three")


async def test_a_commit_token_can_extend_an_older_cookie(worker: Any, client_of: Any) -> None:
    client = client_of(await worker())
    await told(client, "one")
    old = {cookie.key: cookie.value for cookie in client.session.cookie_jar}
    last = await streamed(client, "two")
    client.session.cookie_jar.clear()
    client.session.cookie_jar.update_cookies(old)  # another tab's response came later
    other = moved(client, await worker())
    assert await other.texts() == ["one", "one "]
    client.session.cookie_jar.clear()
    client.session.cookie_jar.update_cookies(old)
    assert (await commit(other, last["commit"]))[0] == 200
    assert await other.texts() == ["one", "one ", "two", "two "]


async def test_sessions_outside_cookies_have_no_commit_tokens(start: Any, client_of: Any) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    last = await streamed(client, "one")
    assert "commit" not in last
    status, answer = await commit(client, COMMIT.seal(Fernet(KEY)))
    assert (status, answer["error"]) == (400, "bad_request")


def test_a_commit_without_an_answer_adds_no_turn() -> None:
    before = replace(COMMIT, turn=None)
    conversation = before.applied_to(COMMIT.applied_to(before.applied_to(Conversation())))
    assert [turn.user for turn in conversation.turns] == ["Hello"]
