"""Tests of feedback on answers, and of the feedback file."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from aiohttp import web

from aiochatstream import AbstractChatPrompt, ChatStream, Feedback, GenerationParams
from aiochatstream.runtime.chat import MAX_PROMPT_TEXTS
from tests.helpers import ClientOf, StartServer, echo, until
from tests.small_engine import SmallEngine


class PlainPrompt(AbstractChatPrompt):
    def create_prompt(self) -> str:
        return "\n".join(f"{role}:" if text is None else f"{role}: {text}" for role, text in self.get_contents())


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
async def test_the_callback_receives_the_rating_the_answer_and_its_prompt(
    start: StartServer,
    client_of: ClientOf,
    small_engine: SmallEngine,
    asynchronous: bool,
) -> None:
    received: list[Feedback] = []

    def sync(request: web.Request, feedback: Feedback) -> None:
        assert request.path == "/set_feedback"
        received.append(feedback)

    async def coroutine(request: web.Request, feedback: Feedback) -> None:
        sync(request, feedback)

    callback = coroutine if asynchronous else sync
    chat_stream = ChatStream(
        engine=small_engine,
        chat_prompt_clazz=PlainPrompt,
        params=GenerationParams(max_new_tokens=4),
        on_feedback=callback,
    )
    client = client_of(await start(chat_stream))
    first, second = await client.say("one"), await client.say("two")
    form = {"comment": "とても良い", "stars": 5}
    for answer, is_like in ((first, True), (second, False)):
        status, body = await client.rate(message_id=answer["message_id"], is_like=is_like, form_data=form)
        assert (status, body) == (
            200,
            {"success": True, "message": "success", "target_message_id": answer["message_id"]},
        )
    assert [feedback.is_like for feedback in received] == [True, False]
    assert received[0].form_data == form
    assert received[0].target_message == first["text"]
    assert received[0].prompt == "user: one\nassistant:"
    assert received[1].prompt == f"user: one\nassistant: {first['text']}\nuser: two\nassistant:"
    assert received[1].target_message_id == second["message_id"]
    assert received[1].generation_params["max_new_tokens"] == 4


async def test_users_can_rate_only_answers_of_their_own_conversations(start: StartServer, client_of: ClientOf) -> None:
    received: list[Any] = []
    server = await start(ChatStream(engine=echo, on_feedback=lambda *args: received.append(args)))
    answer = await client_of(server).say("mine")
    status, body = await client_of(server).rate(message_id=answer["message_id"], is_like=True)
    assert (status, body["error"], body["success"]) == (404, "not_found", False)
    assert not received


@pytest.mark.parametrize(
    ("body", "field"), [({"is_like": True}, "message_id"), ({"message_id": "x", "is_like": "yes"}, "is_like")]
)
async def test_an_invalid_body_is_refused_with_the_field(
    start: StartServer, client_of: ClientOf, body: dict[str, Any], field: str
) -> None:
    status, answer = await client_of(await start(ChatStream(engine=echo))).rate(**body)
    assert (status, answer["error"]) == (422, "invalid_value")
    assert answer["detail"].startswith(field)


async def test_an_exception_of_the_callback_is_a_500(
    start: StartServer, client_of: ClientOf, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: web.Request, feedback: Feedback) -> None:
        raise OSError("the disk is full")

    client = client_of(await start(ChatStream(engine=echo, on_feedback=fail)))
    answer = await client.say("hi")
    status, body = await client.rate(message_id=answer["message_id"], is_like=True)
    assert (status, body["success"]) == (500, False)
    assert "the disk is full" not in json.dumps(body)
    assert "the disk is full" in caplog.text
    assert await client.texts() == ["hi", "hi "]


@pytest.mark.parametrize("form", ["x" * 16_384, ["あ" * 6_000], {"x" * 20_000: 1}])
async def test_a_form_above_16_kib_is_refused(start: StartServer, client_of: ClientOf, form: Any) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    status, body = await client.rate(message_id="x", is_like=True, form_data=form)
    assert (status, body["detail"]) == (422, "form_data: must be at most 16384 bytes of JSON.")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "[1e999]", '{"a": -1' + "0" * 400 + ".5}"])
async def test_a_form_with_non_finite_numbers_is_refused(start: StartServer, client_of: ClientOf, number: str) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    data = f'{{"message_id": "x", "form_data": {number}}}'
    headers = {"Content-Type": "application/json"}
    async with client.session.post(f"{client.url}/set_feedback", data=data, headers=headers) as response:
        assert response.status == 422
        assert (await response.json())["detail"] == "form_data: must be JSON with finite numbers only."


async def test_text_like_nan_is_accepted(start: StartServer, client_of: ClientOf) -> None:
    received: list[Any] = []
    server = await start(ChatStream(engine=echo, on_feedback=lambda *args: received.append(args)))
    client = client_of(server)
    answer = await client.say("NaN 1e999 Infinity")
    form = {"comment": "Infinity, NaN and 1e999", "number": 1e200}
    assert (await client.rate(message_id=answer["message_id"], form_data=form))[0] == 200
    assert received[0][1].form_data == form


async def test_an_answer_has_at_most_ten_ratings_and_repeated_ratings_count_once(
    start: StartServer, client_of: ClientOf
) -> None:
    received: list[Any] = []
    server = await start(ChatStream(engine=echo, on_feedback=lambda *args: received.append(args[1].form_data)))
    client = client_of(server)
    first, second = [(await client.say(text))["message_id"] for text in ("one", "two")]
    for number in range(10):
        for _ in range(3):
            assert (await client.rate(message_id=first, form_data=number))[0] == 200
    for number in (10, 11):
        status, body = await client.rate(message_id=first, form_data=number)
        assert (status, body["error"]) == (422, "invalid_value")
    assert received == list(range(10))
    assert (await client.rate(message_id=second, form_data=0))[0] == 200


async def test_a_rating_can_be_repeated_after_a_failed_callback(start: StartServer, client_of: ClientOf) -> None:
    received: list[Any] = []

    def fail_once(request: web.Request, feedback: Feedback) -> None:
        received.append(feedback)
        if len(received) == 1:
            raise OSError("the disk is full")

    client = client_of(await start(ChatStream(engine=echo, on_feedback=fail_once)))
    answer = await client.say("hi")
    assert [(await client.rate(message_id=answer["message_id"], is_like=True))[0] for _ in range(3)] == [500, 200, 200]
    assert len(received) == 2


async def test_a_rating_can_be_repeated_after_a_refusal_before_the_callback(
    start: StartServer, client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Any] = []
    server = await start(ChatStream(engine=echo, on_feedback=lambda *args: received.append(args)))
    client = client_of(server)
    answer = await client.say("hi")
    monkeypatch.setattr(server.chat_stream, "_prompt_texts", MAX_PROMPT_TEXTS)
    assert (await client.rate(message_id=answer["message_id"], is_like=True))[0] == 503
    monkeypatch.setattr(server.chat_stream, "_prompt_texts", 0)
    assert (await client.rate(message_id=answer["message_id"], is_like=True))[0] == 200
    assert len(received) == 1


async def test_prompts_for_feedback_do_not_block_answers(start: StartServer, client_of: ClientOf) -> None:
    may_go_on = threading.Event()

    class Slow(AbstractChatPrompt):
        def create_prompt(self) -> str:
            return ""

        def get_messages(self) -> list[dict[str, str]]:
            if threading.current_thread() is not threading.main_thread() and self.message == "slow":
                may_go_on.wait()
            return super().get_messages()

    server = await start(ChatStream(engine=echo, chat_prompt_clazz=Slow, on_feedback=lambda *args: None))
    client = client_of(server)
    messages = [
        message
        for number in range(20)
        for message in ({"role": "user", "content": "slow"}, {"role": "assistant", "content": str(number)})
    ]
    async with client.post("/import", messages=messages) as response:
        assert response.status == 200
    ids = [message["message_id"] for message in await client.history() if message["role"] == "assistant"]
    ratings = [asyncio.create_task(client.rate(message_id=message_id, is_like=True)) for message_id in ids]
    try:
        await until(lambda: sum(task.done() for task in ratings) == 4)
        assert (await client_of(server).say("hello"))["text"] == "hello "
    finally:
        may_go_on.set()
    assert sorted(status for status, _ in await asyncio.gather(*ratings)) == [200] * 16 + [503] * 4
