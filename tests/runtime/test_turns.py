"""Turns of a conversation: one at a time, and stopped, cleared, interrupted or failed ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientResponse
from torch import Tensor

from aiochatstream import (
    AbstractChatPrompt,
    ChatStream,
    Conversation,
    Delta,
    Engine,
    GenerationParams,
    Limits,
    MemoryConversationStore,
    MemoryStorage,
    Prompt,
    TokenSampler,
    TransformersEngine,
)
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import (
    STUCK_THOUGHT,
    THOUGHTFUL,
    Client,
    ClientOf,
    DeltaEngine,
    MakeStepper,
    StartServer,
    echo,
    post_bytes,
    sse_events,
    until,
)
from tests.small_engine import SmallEngine

pytestmark = pytest.mark.both_loops

CONTINUE: dict[str, Any] = {"continue": True}


async def test_a_second_turn_of_a_conversation_is_refused_while_one_runs(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    client = client_of(server)
    engine.allow(2)
    await client.say("first")
    running = asyncio.create_task(client.say("second"))
    await until(lambda: len(engine.calls) == 2)
    async with client.post(user_input="third") as response:
        assert response.status == 409
        assert (await response.json())["error"] == "conversation_busy"
    other = asyncio.create_task(client.say("elsewhere", conversation="other"))  # another conversation
    await until(lambda: len(engine.calls) == 3)
    engine.allow(4)
    await asyncio.gather(running, other)
    assert await client.texts() == ["first", "1 2 ", "second", "1 2 "]


@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
async def test_a_conversation_with_a_running_turn_is_never_evicted(
    start: StartServer, client_of: ClientOf, accept: str
) -> None:
    started, may_end = threading.Event(), threading.Event()

    def engine(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        yield "so "
        if messages[-1]["content"] == "two":
            started.set()
            may_end.wait()
        yield "it is"

    store, sessions = MemoryConversationStore(max_conversations=1), MemoryStorage(max_sessions=1)
    server = await start(ChatStream(engine=engine, conversation_store=store), sessions)
    client, other = client_of(server), client_of(server)
    await client.say("one")
    running = asyncio.create_task(read(client.post(accept=accept, user_input="two")))
    await until(started.is_set)
    await other.say("elsewhere")
    may_end.set()
    await running
    assert await client.texts() == ["one", "so it is", "two", "so it is"]


@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
async def test_stop_ends_the_answer_and_saves_its_text(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, accept: str
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=4)))
    client = client_of(server)
    engine.allow(4)
    await client.say("first")
    running = asyncio.create_task(read(client.post(accept=accept, user_input="second")))
    engine.allow(1)
    await until(lambda: any(turn.text == "1 " for turn in server.chat_stream.running_turns))
    stopping = asyncio.create_task(read(client.post("/chat_stream/stop")))
    await until(lambda: any(turn.ending for turn in server.chat_stream.running_turns))
    engine.allow(1)
    assert '"success":true' in await stopping
    body = await running
    assert body == "1 2 " if accept == "text/plain" else '"finish_reason":"cancelled"' in body
    last = (await client.history())[-1]
    assert (last["content"], last["state"]) == ("1 2 ", "interrupted")
    assert server.idle


async def test_a_message_sent_after_a_stop_is_answered(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=3)))
    client = client_of(server)
    engine.allow(3)
    await client.say("first")
    running = asyncio.create_task(client.say("second"))
    await until(lambda: len(engine.calls) == 2)
    stopping = asyncio.create_task(read(client.post("/chat_stream/stop")))
    await until(lambda: any(turn.ending for turn in server.chat_stream.running_turns))
    again = asyncio.create_task(client.say("third"))  # the stopped answer is in its last step
    engine.allow(4)
    await stopping
    assert (await again)["text"] == "1 2 3 "
    assert (await running)["finish_reason"] == "cancelled"


async def test_stop_without_a_running_answer_is_a_404(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=echo))
    async with client_of(server).post("/chat_stream/stop") as response:
        assert response.status == 404
        assert (await response.json())["error"] == "not_running_here"
        assert "Set-Cookie" not in response.headers


async def test_a_stopped_answer_without_text_leaves_no_turn(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(
        ChatStream(engine=engine, num_of_concurrent_executions=1, params=GenerationParams(max_new_tokens=1))
    )
    client, other = client_of(server), client_of(server)
    engine.allow(1)
    await client.say("first")
    blocking = asyncio.create_task(other.say("blocks the slot"))
    await until(lambda: len(engine.calls) == 2)
    waiting = asyncio.create_task(client.say("second"))
    await until(lambda: server.chat_stream.admission.waiting == 1)
    assert await read(client.post("/chat_stream/stop"))
    answer = await waiting
    assert (answer["finish_reason"], answer["text"]) == ("cancelled", "")
    assert await client.texts() == ["first", "1 "]
    engine.allow(1)
    await blocking


async def test_clear_context_discards_a_running_answer(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    client = client_of(server)
    assert await read(client.post("/clear_context")) == '{"success":false,"message":"no context."}'
    engine.allow(2)
    await client.say("first")
    running = asyncio.create_task(client.say("second"))
    await until(lambda: len(engine.calls) == 2)
    clearing = asyncio.create_task(read(client.post("/clear_context")))
    await until(lambda: any(turn.ending for turn in server.chat_stream.running_turns))
    engine.allow(1)
    assert await clearing == '{"success":true,"message":"Context successfully cleared"}'
    assert (await running)["finish_reason"] == "cancelled"
    assert await client.history() == []
    engine.allow(2)
    await client.say("anew")
    assert engine.calls[-1] == [{"role": "user", "content": "anew"}]


async def test_history_marks_a_running_answer(start: StartServer, stepper: MakeStepper, client_of: ClientOf) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    client = client_of(server)
    engine.allow(3)
    await client.say("first")
    running = asyncio.create_task(client.say("second"))
    await until(lambda: any(turn.text == "1 " for turn in server.chat_stream.running_turns))
    history = await client.history()
    assert [message["content"] for message in history] == ["first", "1 2 ", "second", "1 "]
    assert [message.get("state") for message in history] == [None, "complete", None, "running"]
    engine.allow(1)
    await running
    assert (await client.history())[-1]["state"] == "complete"


async def test_regenerate_without_a_message_is_a_409(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=echo))
    async with client_of(server).post(regenerate=True) as response:
        assert response.status == 409
        assert (await response.json())["error"] == "nothing_to_regenerate"
    assert server.idle


async def test_a_regenerated_answer_replaces_the_old_one_only_if_it_has_text(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=3)))
    client = client_of(server)
    engine.allow(3)
    await client.say("first")
    engine.fail_at = 0
    engine.allow(1)
    async with client.post(regenerate=True) as response:
        assert response.status == 500
    assert await client.texts() == ["first", "1 2 3 "]
    engine.fail_at = None
    running = asyncio.create_task(client.say(regenerate=True))
    engine.allow(1)
    await until(lambda: any(turn.text == "1 " for turn in server.chat_stream.running_turns))
    stopping = asyncio.create_task(read(client.post("/chat_stream/stop")))
    await until(lambda: any(turn.ending for turn in server.chat_stream.running_turns))
    engine.allow(1)
    await asyncio.gather(stopping, running)
    last = (await client.history())[-1]
    assert (last["content"], last["state"]) == ("1 2 ", "interrupted")


@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
@pytest.mark.parametrize("fail_at", [0, 2])
async def test_an_engine_error_is_reported_and_the_text_before_it_is_saved(
    start: StartServer,
    stepper: MakeStepper,
    client_of: ClientOf,
    caplog: pytest.LogCaptureFixture,
    accept: str,
    fail_at: int,
) -> None:
    engine = stepper(fail_at=5)
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=4)))
    client = client_of(server)
    engine.allow(4)
    await client.say("first")
    engine.fail_at = fail_at
    engine.allow(fail_at + 1)
    async with client.post(accept=accept, user_input="second") as response:
        message_id = response.headers.get("X-ChatStream-Last-Generated-Message-Id")
        if accept == "text/event-stream":
            events = [event async for event in sse_events(response)]
            assert [name for name, _ in events] == ["start", *["delta"] * fail_at, "error"]
            error = events[-1][1]["error"]
        elif accept == "text/plain" and fail_at:
            assert response.status == 200
            with pytest.raises(ClientPayloadError):  # the response does not look complete
                await response.read()
            error = None
        else:
            assert response.status == 500
            error = await response.json()
    assert error is None or error["error"] == "internal_server_error"
    assert error is None or "the engine broke" not in str(error)
    assert "ZeroDivisionError" in caplog.text
    assert message_id is None or message_id in caplog.text
    assert await client.texts() == ["first", "1 2 3 4 ", *(["second", "1 2 "] if fail_at else [])]
    assert server.idle
    engine.fail_at = None
    engine.allow(4)
    if fail_at:
        assert (await client.history())[-1]["state"] == "interrupted"
        assert (await client.say(None, **{"continue": True}))["text"] == "1 2 3 4 "
        assert await client.texts() == ["first", "1 2 3 4 ", "second", "1 2 1 2 3 4 "]
    else:
        assert (await client.say("second"))["text"] == "1 2 3 4 "


async def test_an_engine_error_leaves_the_answer_that_is_to_be_replaced(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper(fail_at=5)
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=4)))
    client = client_of(server)
    engine.allow(4)
    await client.say("first")
    engine.fail_at = 2
    engine.allow(3)
    async with client.post(accept="text/event-stream", regenerate=True) as response:
        events = [event async for event in sse_events(response)]
    assert [name for name, _ in events] == ["start", "delta", "delta", "error"]
    assert "The conversation is unchanged; send again." in events[-1][1]["error"]["detail"]
    assert await client.texts() == ["first", "1 2 3 4 "]


async def test_http_1_0_responses_are_not_chunked_and_close_the_connection(start: StartServer) -> None:
    server = await start(ChatStream(engine=echo))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(post_bytes('{"user_input":"one two"}', version="1.0"))
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert b"chunked" not in head.lower()
    assert body == b"one two "
    writer.close()
    await writer.wait_closed()


async def test_a_failed_http_1_0_response_resets_the_connection(start: StartServer, stepper: MakeStepper) -> None:
    engine = stepper(fail_at=1)
    server = await start(ChatStream(engine=engine))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(post_bytes('{"user_input":"one two"}', version="1.0"))
        engine.allow(1)
        await reader.readuntil(b"\r\n\r\n1 ")
        engine.allow(1)
        with pytest.raises(ConnectionResetError):
            await reader.read()
    finally:
        writer.transport.abort()


async def read(request: AbstractAsyncContextManager[ClientResponse]) -> str:
    async with request as response:
        return await response.text()


@pytest.mark.parametrize("raised", [StopIteration(), asyncio.CancelledError(), SystemExit(3), GeneratorExit()])
async def test_any_engine_error_releases_the_conversation_and_the_slot(
    start: StartServer, client_of: ClientOf, raised: BaseException
) -> None:
    class Broken(Engine):
        def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
            raise raised

    server = await start(ChatStream(engine=Broken()))
    client = client_of(server)
    for _ in range(3):
        async with client.post(user_input="hi") as response:
            assert response.status == 500
    await until(lambda: server.idle)


async def test_an_engine_function_that_yields_other_than_text_is_an_error(
    start: StartServer, client_of: ClientOf
) -> None:
    def broken(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        yield 5  # type: ignore[misc]

    server = await start(ChatStream(engine=broken))
    async with client_of(server).post(user_input="hi") as response:
        assert response.status == 500
    assert server.idle


async def test_a_prompt_class_error_is_a_500_and_releases_the_place(
    start: StartServer, client_of: ClientOf, small_engine: SmallEngine
) -> None:
    class Broken(AbstractChatPrompt):
        def create_prompt(self) -> str:
            return next(iter([self.message][: self.message == "Hello"]))  # StopIteration after the trial at start-up

    server = await start(ChatStream(engine=small_engine, chat_prompt_clazz=Broken))
    async with client_of(server).post(user_input="hi") as response:
        assert response.status == 500
    assert server.idle


@pytest.mark.parametrize("raised", [SystemExit(3), GeneratorExit(), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_a_prompt_class_cannot_end_the_server(
    start: StartServer, client_of: ClientOf, raised: BaseException
) -> None:
    class Ending(AbstractChatPrompt):
        def get_messages(self) -> list[dict[str, str]]:
            if self.message == "end":
                raise raised
            return super().get_messages()

        def create_prompt(self) -> str:
            return ""

    server = await start(ChatStream(engine=echo, chat_prompt_clazz=Ending))
    async with client_of(server).post(user_input="end") as response:
        assert response.status == 500
    assert (await client_of(server).say("go on"))["text"] == "go on "
    assert server.idle


async def test_requests_to_a_stopped_engine_are_a_503(
    start: StartServer, client_of: ClientOf, caplog: pytest.LogCaptureFixture
) -> None:
    class Ending(TokenSampler):
        def sample(
            self, logits: Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
        ) -> Tensor:
            if len(token_ids[0]) > 60:
                raise SystemExit(3)
            return logits.argmax(-1)

    class Bytes(AbstractChatPrompt):
        def create_prompt(self) -> str:
            return self.message

    chat_stream = ChatStream(
        engine=TransformersEngine(tiny(), BYTES, token_sampler=Ending()),
        chat_prompt_clazz=Bytes,
        params=GenerationParams(max_new_tokens=9),
    )
    server = await start(chat_stream)
    client = client_of(server)
    assert (await client.say("short"))["finish_reason"] == "length"
    async with client.post(user_input="long" * 20) as response:
        assert response.status == 500
    for path in ("/readyz", "/v1/models"):
        async with client.session.get(client.url + path) as response:
            assert (path, response.status) == (path, 503)
            assert "engine_stopped" in await response.text()
    async with client.post(user_input="again") as response:
        assert (response.status, (await response.json())["error"]) == (503, "engine_stopped")
    assert server.idle
    assert "The engine has stopped and cannot answer any more." in caplog.text


async def test_an_answer_without_text_at_its_time_limit_leaves_no_turn(start: StartServer, client_of: ClientOf) -> None:
    class Silent(Engine):
        def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
            while True:
                yield Delta()

    client = client_of(await start(ChatStream(engine=Silent(), limits=Limits(max_answer=0.01))))
    answer = await client.say("hi")
    assert (answer["text"], answer["finish_reason"]) == ("", "length")
    assert await client.history() == []


async def test_history_contains_a_running_regeneration_in_place_of_the_old_answer(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    client = client_of(server)
    engine.allow(2)
    await client.say("first")
    running = asyncio.create_task(client.say(regenerate=True))
    engine.allow(1)
    await until(lambda: any(turn.text == "1 " for turn in server.chat_stream.running_turns))
    assert await client.texts() == ["first", "1 "]
    engine.allow(1)
    await running
    assert await client.texts() == ["first", "1 2 "]


async def test_errors_of_chatstream_endpoints_have_both_sets_of_keys(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=echo))
    async with client_of(server).post("/clear_context", conversation=5) as response:
        assert response.status == 422
        body = await response.json()
    assert (body["error"], body["success"]) == ("invalid_value", False)
    assert body["message"] == body["detail"]


async def test_a_turn_that_begins_during_a_clear_does_not_restore_the_conversation(
    start: StartServer, client_of: ClientOf
) -> None:
    loading, may_load = asyncio.Event(), asyncio.Event()

    class Slow(MemoryConversationStore):
        async def load(self, user_id: str, name: str) -> Conversation | None:
            loaded = await super().load(user_id, name)
            loading.set()
            await may_load.wait()
            return loaded

    server = await start(ChatStream(engine=echo, conversation_store=Slow()))
    client = client_of(server)
    may_load.set()
    await client.say("secret")
    may_load.clear()
    loading.clear()
    asking = asyncio.create_task(client.say("next"))
    await loading.wait()
    clearing = asyncio.create_task(read(client.post("/clear_context")))
    await until(lambda: any(turn.ending for turn in server.chat_stream.running_turns))
    may_load.set()
    assert '"success":true' in await clearing
    await asking
    assert await client.history() == []


async def test_a_complete_answer_is_saved_even_if_the_engine_then_fails(
    start: StartServer, client_of: ClientOf
) -> None:
    class Untidy(Engine):
        def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
            yield Delta("whole", (1,), "stop")
            raise ZeroDivisionError("while cleaning up")

    client = client_of(await start(ChatStream(engine=Untidy())))
    assert (await client.say("hi"))["finish_reason"] == "stop"
    assert await client.texts() == ["hi", "whole"]


async def test_replacements_apply_across_chunks_to_the_response_and_the_history(
    start: StartServer, client_of: ClientOf
) -> None:
    class Lines(AbstractChatPrompt):
        def create_prompt(self) -> str:
            return self.message

        def get_replacement_when_output(self) -> list[tuple[str, str]]:
            return [("<NL>", "\n")]

    def pieces(messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        yield from ("one<", "NL>two", "<N", "L>", "<NL")

    client = client_of(await start(ChatStream(engine=pieces, chat_prompt_clazz=Lines)))
    answer = await client.say("hello")
    assert answer["text"] == "one\ntwo\n<NL"
    assert await client.texts() == ["hello", "one\ntwo\n<NL"]


async def test_a_prompt_has_the_owner_of_its_user(start: StartServer, client_of: ClientOf) -> None:
    owners: list[str] = []

    class Owners(Engine):
        def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
            owners.append(prompt.owner)
            yield Delta("hi", finish_reason="stop")

    server = await start(ChatStream(engine=Owners()))
    first, second = client_of(server), client_of(server)
    for client in (first, second, first):
        await client.say("hello")
    await first.say("hello", conversation="another")
    assert owners[0] == owners[2] == owners[3] != owners[1]
    assert all(owners)


async def import_interrupted(client: Client, message: str, answer: str, thinking: str = "") -> None:
    messages = [
        {"role": "user", "content": message},
        {"role": "assistant", "content": answer, "state": "interrupted", "thinking": thinking},
    ]
    async with client.post("/import", messages=messages) as response:
        assert response.status == 200


@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/json"])
async def test_continuing_an_interrupted_answer_sends_only_the_new_text(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf, accept: str
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    client = client_of(server)
    await import_interrupted(client, "hello", "1 ")
    before = (await client.history())[1]
    assert (before["content"], before["state"]) == ("1 ", "interrupted")
    engine.allow(2)
    body = await read(client.post(accept=accept, **CONTINUE))
    assert body.count("1 ") == 1
    assert engine.calls[-1] == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "1 "}]
    after = (await client.history())[1]
    assert (after["content"], after["state"]) == ("1 1 2 ", "complete")
    assert after["message_id"] != before["message_id"]
    async with client.post(**CONTINUE) as response:
        assert response.status == 409
        assert (await response.json())["error"] == "nothing_to_continue"


async def test_a_failed_continuation_leaves_the_answer_unchanged(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    client = client_of(server)
    await import_interrupted(client, "hello", "1 ")
    before = await client.history()
    engine.fail_at = 0
    engine.allow(1)
    async with client.post(**CONTINUE) as response:
        assert response.status == 500
    assert await client.history() == before


async def test_history_contains_the_whole_answer_during_a_continuation(
    start: StartServer, stepper: MakeStepper, client_of: ClientOf
) -> None:
    engine = stepper()
    server = await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=2)))
    client = client_of(server)
    await import_interrupted(client, "hello", "1 ")
    continuing = asyncio.create_task(read(client.post(**CONTINUE)))
    engine.allow(1)
    await until(lambda: any(turn.text for turn in server.chat_stream.running_turns))
    messages = await client.history()
    assert [(message["content"], message.get("state")) for message in messages] == [
        ("hello", None),
        ("1 1 ", "running"),
    ]
    engine.allow(1)
    await continuing


async def test_the_model_continues_its_own_text(
    start: StartServer, small_engine: SmallEngine, client_of: ClientOf
) -> None:
    chat_stream = ChatStream(engine=small_engine, params=GenerationParams(temperature=0, max_new_tokens=24))
    client = client_of(await start(chat_stream))
    question = "What is the capital of France?"
    whole = (await client.say(question))["text"]
    half = whole[: whole.index(" ", len(whole) // 2)]
    await import_interrupted(client, question, half)
    rest = (await client.say(**CONTINUE))["text"]
    assert rest.startswith(" ")
    assert whole.startswith(half + rest[:10])
    assert await client.texts() == [question, half + rest]


async def test_a_thought_that_uses_all_tokens_is_saved_with_an_empty_answer(
    start: StartServer, client_of: ClientOf
) -> None:
    engine = DeltaEngine(*STUCK_THOUGHT)
    client = client_of(await start(ChatStream(engine=engine)))
    assert (await client.say("one"))["finish_reason"] == "thinking_length"
    last = (await client.history())[-1]
    assert (last["content"], last["thinking"], last["state"]) == ("", "Let me ", "complete")
    engine.deltas = THOUGHTFUL
    await client.say("two")
    assert [message["content"] for message in engine.prompts[-1].messages] == ["one", "", "two"]
    assert await client.texts() == ["one", "", "two", "It is four."]


async def test_a_thought_that_takes_too_long_is_saved_with_an_empty_answer(
    start: StartServer, client_of: ClientOf
) -> None:
    timed_out = threading.Event()
    engine = DeltaEngine(STUCK_THOUGHT[0], timed_out, *THOUGHTFUL)
    server = await start(ChatStream(engine=engine, limits=Limits(max_answer=0.05)))
    client = client_of(server)
    answering = asyncio.create_task(client.say("one"))
    await until(lambda: any(turn.thinking and turn.ending for turn in server.chat_stream.running_turns))
    timed_out.set()
    assert (await answering)["finish_reason"] == "thinking_length"
    assert (await client.history())[-1]["state"] == "complete"


async def test_history_contains_the_thought_so_far(start: StartServer, client_of: ClientOf) -> None:
    may_answer = threading.Event()
    engine = DeltaEngine(*THOUGHTFUL)
    server = await start(ChatStream(engine=engine))
    client = client_of(server)
    await client.say("zero")
    engine.deltas = (THOUGHTFUL[0], may_answer, *THOUGHTFUL[1:])
    answering = asyncio.create_task(client.say("one"))
    await until(lambda: any(turn.thinking for turn in server.chat_stream.running_turns))
    running = (await client.history())[-1]
    assert (running["content"], running["thinking"], running["state"]) == ("", "Let me ", "running")
    may_answer.set()
    await answering
    assert (await client.history())[-1]["thinking"] == "Let me see."


async def test_an_answer_that_is_stopped_in_its_thought_is_not_saved(start: StartServer, client_of: ClientOf) -> None:
    may_end = threading.Event()
    engine = DeltaEngine(*THOUGHTFUL)
    server = await start(ChatStream(engine=engine))
    client = client_of(server)
    await client.say("zero")
    engine.deltas = (THOUGHTFUL[0], may_end, *THOUGHTFUL)
    answering = asyncio.create_task(client.say("one"))
    await until(lambda: any(turn.thinking for turn in server.chat_stream.running_turns))
    stopping = asyncio.create_task(read(client.post("/chat_stream/stop")))
    await until(lambda: any(turn.ending for turn in server.chat_stream.running_turns))
    may_end.set()
    await stopping
    answer = await answering
    assert (answer["finish_reason"], answer["text"]) == ("cancelled", "")
    assert await client.texts() == ["zero", "It is four."]


async def test_a_continued_answer_keeps_its_earlier_thought(start: StartServer, client_of: ClientOf) -> None:
    may_end = threading.Event()
    engine = DeltaEngine(Delta(thinking="Well."), Delta("four"), may_end, Delta("!", finish_reason="stop"))
    server = await start(ChatStream(engine=engine))
    client = client_of(server)
    await import_interrupted(client, "hello", "It is ", thinking="Let me see.")
    continuing = asyncio.create_task(client.say(**CONTINUE))
    await until(lambda: any(turn.text for turn in server.chat_stream.running_turns))
    running = (await client.history())[-1]
    assert (running["content"], running["thinking"]) == ("It is four", "Let me see.Well.")
    may_end.set()
    answer = await continuing
    assert (answer["text"], answer["thinking"]) == ("four!", "Well.")
    after = (await client.history())[-1]
    assert (after["content"], after["thinking"]) == ("It is four!", "Let me see.Well.")


async def test_regenerating_and_editing_replace_the_thought(start: StartServer, client_of: ClientOf) -> None:
    engine = DeltaEngine(*THOUGHTFUL)
    client = client_of(await start(ChatStream(engine=engine)))
    await client.say("one")
    engine.deltas = (Delta(thinking="Again."), Delta("Five.", finish_reason="stop"))
    await client.say(regenerate=True)
    last = (await client.history())[-1]
    assert (last["content"], last["thinking"]) == ("Five.", "Again.")
    engine.deltas = (Delta("Six.", finish_reason="stop"),)
    await client.say("two", edit_message_id=last["message_id"])
    assert "thinking" not in (await client.history())[-1]


async def test_the_time_to_the_first_token_ends_with_the_first_thought(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=DeltaEngine(*STUCK_THOUGHT))))
    assert (await client.say("one"))["timing"]["ttft_s"] is not None
