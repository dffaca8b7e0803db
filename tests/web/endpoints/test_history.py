"""Tests of reading, editing, exporting and importing conversations, in memory and in cookies."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp_session import AbstractStorage
from cryptography.fernet import Fernet

from aiochatstream import ChatStream, CookieStorage, GenerationParams, MemoryStorage
from aiochatstream.conversations.conversation import MAX_CHARS
from aiochatstream.conversations.export import ExportedConversation
from tests.helpers import (
    THOUGHTFUL,
    Client,
    ClientOf,
    DeltaEngine,
    MakeStepper,
    Server,
    StartServer,
    echo,
    sse_events,
    until,
)

KEY = Fernet.generate_key()

STORAGES: dict[str, Callable[[], AbstractStorage]] = {"memory": MemoryStorage, "cookie": lambda: CookieStorage(KEY)}

StartWith = Callable[..., Awaitable[Server]]


@pytest.fixture(params=STORAGES)
def start_with(start: StartServer, request: pytest.FixtureRequest) -> StartWith:
    """Return a function that starts a server with the storage of the test, and by default with an echo engine."""

    async def with_storage(**options: Any) -> Server:
        return await start(ChatStream(**{"engine": echo, **options}), STORAGES[request.param]())

    return with_storage


@pytest.fixture
async def client(start_with: StartWith, client_of: ClientOf) -> Client:
    """Return a user who has sent three messages."""
    user = client_of(await start_with())
    for text in ("one", "two", "three"):
        await user.say(text)
    return user


async def ids(client: Client) -> list[str]:
    return [message["message_id"] for message in await client.history() if message["role"] == "assistant"]


async def delete(client: Client, message_id: str, **query: Any) -> tuple[int, dict[str, Any]]:
    async with client.session.delete(f"{client.url}/history/{message_id}", params=query) as response:
        return response.status, await response.json()


async def turn_of(client: Client) -> int:
    async with client.session.get(f"{client.url}/history") as response:
        body = await response.json()
        assert response.headers["ETag"] == f'"{body["turn"]}"'
        number: int = body["turn"]
        return number


async def put_in(client: Client, **body: Any) -> tuple[int, dict[str, Any]]:
    async with client.post("/import", **body) as response:
        return response.status, await response.json()


async def export(client: Client, conversation: str = "main") -> dict[str, Any]:
    async with client.session.get(f"{client.url}/export", params={"conversation": conversation}) as response:
        assert response.status == 200
        assert response.headers["Content-Disposition"] == f'attachment; filename="{conversation}.json"'
        exported: dict[str, Any] = await response.json()
        return exported


async def test_deleting_a_turn_keeps_the_others(client: Client) -> None:
    status, answer = await delete(client, (await ids(client))[1])
    assert (status, answer["success"], answer["turn"]) == (200, True, 4)
    assert await client.texts() == ["one", "one ", "three", "three "]
    await client.say("four")
    assert await client.texts() == ["one", "one ", "three", "three ", "four", "four "]


async def test_deleting_an_unknown_turn_is_a_404(client: Client) -> None:
    status, answer = await delete(client, "nothing")
    assert (status, answer["error"]) == (404, "not_found")
    assert answer["detail"] == "message_id: this conversation has no answer 'nothing'."
    assert await delete(client, (await ids(client))[0], conversation="other") == (
        404,
        {**answer, "detail": f"message_id: this conversation has no answer {(await ids(client))[0]!r}."},
    )
    assert len(await client.texts()) == 6


async def test_an_edit_replaces_the_message_and_removes_later_turns(client: Client) -> None:
    second = (await ids(client))[1]
    answer = await client.say("changed", edit_message_id=second)
    assert answer["text"] == "changed "
    assert await client.texts() == ["one", "one ", "changed", "changed "]
    async with client.post(user_input="again", edit_message_id=second) as response:
        assert response.status == 404
        assert (await response.json())["detail"].startswith("edit_message_id: this conversation has no answer")


async def test_a_failed_edit_changes_nothing(start_with: StartWith, client_of: ClientOf, stepper: MakeStepper) -> None:
    engine = stepper()
    engine.allow(100)
    client = client_of(await start_with(engine=engine, params=GenerationParams(max_new_tokens=1)))
    for text in ("one", "two"):
        await client.say(text)
    before = await client.history()
    engine.fail_at = 0
    async with client.post(user_input="changed", edit_message_id=before[1]["message_id"]) as response:
        assert response.status == 500
    assert await client.history() == before


async def test_if_turn_prevents_lost_updates_between_tabs(client: Client) -> None:
    seen = await turn_of(client)
    await client.say("from the other tab", if_turn=seen)
    for change in (
        client.post(user_input="four", if_turn=seen),
        client.post(regenerate=True, if_turn=seen),
        client.post("/import", messages=[], if_turn=seen),
        client.session.delete(f"{client.url}/history/{(await ids(client))[0]}?if_turn={seen}"),
    ):
        async with change as response:
            assert response.status == 409
            assert (await response.json())["error"] == "conversation_changed"
    assert len(await client.texts()) == 8
    now = await turn_of(client)
    assert (await delete(client, (await ids(client))[0], if_turn=now))[0] == 200
    assert await turn_of(client) == now + 1


@pytest.mark.parametrize("if_turn", ["-1", "x", "1.5", ""])
async def test_an_invalid_turn_number_is_refused(client: Client, if_turn: str) -> None:
    status, answer = await delete(client, "x", if_turn=if_turn)
    assert (status, answer["error"]) == (422, "invalid_value")
    assert answer["detail"] == "if_turn: must be the turn number of the conversation, a whole number from 0."


async def test_the_done_event_and_the_json_answer_contain_the_turn_number(client: Client) -> None:
    answer = await client.say("four")
    assert answer["turn"] == await turn_of(client) == 4
    async with client.post(accept="text/event-stream", user_input="five") as response:
        events = [event async for event in sse_events(response)]
    assert events[-1][1]["turn"] == await turn_of(client) == 5


async def test_an_export_can_be_imported_by_another_user(
    client: Client, start_with: StartWith, client_of: ClientOf
) -> None:
    exported = await export(client)
    assert [message["content"] for message in exported["messages"]] == await client.texts()
    other = client_of(await start_with())
    status, answer = await put_in(other, conversation="copy", **exported)
    assert (status, answer["turn"]) == (200, 1)
    assert await other.history("copy") == await client.history()
    assert await export(other, "copy") == exported
    assert (await other.say("four", conversation="copy"))["usage"]["prompt_tokens"] >= 0
    assert (await other.texts("copy"))[-1] == "four "


async def test_an_import_replaces_the_conversation(client: Client) -> None:
    messages = [{"role": "user", "content": "寿司 🍣"}, {"role": "assistant", "content": "", "state": "interrupted"}]
    assert (await put_in(client, messages=messages))[0] == 200
    [user, answer] = await client.history()
    assert user == messages[0]
    assert {**answer, "message_id": None} == {**messages[1], "message_id": None}
    assert answer["message_id"]
    assert (await put_in(client, messages=[]))[0] == 200
    assert await client.history() == []


async def test_imported_answers_have_unique_ids(client: Client) -> None:
    turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "message_id": "same"}]
    await put_in(client, messages=turn * 3)
    assert (await ids(client))[0] == "same"
    assert len(set(await ids(client))) == 3


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages: must be a list of at most 4000 messages"),
        ([{"role": "user", "content": "x"}] * 4001, "messages: must be a list of at most 4000 messages"),
        ([{"role": "user", "content": "x"}], "messages: must alternate between user and assistant"),
        ([{"role": "system", "content": "x"}], "messages.0.role: must be 'user' or 'assistant'"),
        (
            [{"role": "user", "content": " "}, {"role": "assistant", "content": "x"}],
            "messages: the content of user messages must not be empty",
        ),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": 1}],
            "messages.1.content: must be a string",
        ),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x", "message_id": "<b>"}],
            "messages.1.message_id: must be a string of up to 64 of the characters",
        ),
    ],
)
async def test_an_invalid_import_is_refused_and_changes_nothing(client: Client, messages: Any, message: str) -> None:
    before = await client.history()
    status, answer = await put_in(client, messages=messages)
    assert (status, answer["error"]) == (422, "invalid_value")
    assert answer["detail"].startswith(message)
    assert await client.history() == before


def test_an_import_above_the_maximum_size_is_refused() -> None:
    text = "x" * (MAX_CHARS // 2)
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    assert len(ExportedConversation.model_validate({"messages": messages}).to_conversation().turns) == 1
    with pytest.raises(ValueError, match="messages: must have at most 1048576 characters in total"):
        ExportedConversation.model_validate({"messages": [messages[0], {**messages[1], "content": text + "x"}]})


def test_an_import_takes_linear_time() -> None:
    turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "message_id": "same"}]

    def steps(turns: int) -> int:
        saved, counted = ExportedConversation.model_validate({"messages": turn * turns}), Counter[str]()
        sys.setprofile(lambda frame, event, arg: counted.update([event]))
        try:
            conversation = saved.to_conversation()
            conversation.to_dict()
        finally:
            sys.setprofile(None)
        assert len({turn.message_id for turn in conversation.turns}) == turns
        return counted.total()

    assert steps(400) < 3 * steps(200)


async def test_a_running_answer_blocks_changes(
    start_with: StartWith, client_of: ClientOf, stepper: MakeStepper
) -> None:
    engine = stepper()
    server = await start_with(engine=engine, params=GenerationParams(max_new_tokens=2))
    client = client_of(server)
    engine.allow(2)
    await client.say("one")
    first = (await ids(client))[0]
    running = asyncio.create_task(client.say("two"))
    await until(lambda: len(engine.calls) == 2)
    assert (await delete(client, first))[0] == 409
    assert (await put_in(client, messages=[]))[0] == 409
    assert (await export(client))["messages"][-1]["content"] == "1 2 "
    engine.allow(2)
    await running
    assert await client.texts() == ["one", "1 2 ", "two", "1 2 "]


@pytest.mark.parametrize("ascii_only", [False, True], ids=["as exported", "escaped"])
@pytest.mark.parametrize("text", ["日", "\x01", "😀", '"', "\\\x01", "{}[],:"], ids=repr)
async def test_an_export_of_the_maximum_length_can_be_imported(
    start: StartServer, client_of: ClientOf, text: str, ascii_only: bool
) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    half = "x" + text * (MAX_CHARS // 2 // len(text) - 1)
    messages = [{"role": "user", "content": half}, {"role": "assistant", "content": half}]
    data = json.dumps({"messages": messages}, ensure_ascii=ascii_only)
    headers = {"Content-Type": "application/json"}
    async with client.session.post(f"{client.url}/import", data=io.BytesIO(data.encode()), headers=headers) as response:
        assert response.status == 200, await response.text()
    async with client.session.get(f"{client.url}/export") as response:
        exported = await response.read()
    assert [message["content"] for message in json.loads(exported)["messages"]] == [half, half]
    async with client.session.post(f"{client.url}/import", data=io.BytesIO(exported), headers=headers) as response:
        assert response.status == 200, await response.text()


async def test_an_import_with_too_much_structure_is_refused_before_parsing(
    client: Client,
) -> None:
    data = b'{"messages": [' + b"{}," * 1_000_000 + b"{}]}"
    headers = {"Content-Type": "application/json"}
    async with client.session.post(f"{client.url}/import", data=io.BytesIO(data), headers=headers) as response:
        assert (response.status, (await response.json())["error"]) == (413, "too_large")


async def test_thoughts_are_stored_and_exported_except_in_cookies(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL))))
    await client.say("one")
    assert (await client.history())[1]["thinking"] == "Let me see."
    exported = await export(client)
    assert exported["messages"] == await client.history()
    status, _ = await put_in(client, conversation="copy", **exported)
    assert status == 200
    assert await client.history("copy") == await client.history()
    client = client_of(await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)), CookieStorage(KEY)))
    assert (await client.say("one"))["thinking"] == "Let me see."
    assert "thinking" not in (await client.history())[1]
    assert (await put_in(client, **exported))[0] == 200
    assert [message.get("thinking") for message in await client.history()] == [None, None]


async def test_an_import_with_invalid_thoughts_is_refused(client: Client) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "thinking": 1}]
    status, answer = await put_in(client, messages=messages)
    assert (status, answer["detail"]) == (422, "messages.1.thinking: must be a string.")


def test_thoughts_count_for_the_maximum_size_of_an_import() -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "thinking": "y" * MAX_CHARS}]
    with pytest.raises(ValueError, match="messages: must have at most 1048576 characters in total"):
        ExportedConversation.model_validate({"messages": messages})
