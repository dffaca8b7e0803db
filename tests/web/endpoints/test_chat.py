"""Tests of POST /chat_stream with the small model."""

from __future__ import annotations

import asyncio
import itertools
import uuid

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aiochatstream import ChatStream, GenerationParams, Limits
from tests.helpers import ClientOf, Server, StartServer, sse_events
from tests.small_engine import SmallEngine

QUESTION = "What is the capital of France?"


@pytest.fixture
async def server(start: StartServer, small_engine: SmallEngine) -> Server:
    return await start(
        ChatStream(
            engine=small_engine,
            params=GenerationParams(temperature=0, max_new_tokens=12),
            max_queue_size=8,
        )
    )


def reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], max_new_tokens: int = 12
) -> list[int]:
    """Return the token ids of a greedy answer from ``model.generate``."""
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


async def test_the_streamed_answer_equals_the_output_of_generate(
    server: Server, client_of: ClientOf, untouched_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    chunks = []
    async with client_of(server).post(user_input=QUESTION) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        async for chunk, _ in response.content.iter_chunks():
            chunks.append(chunk.decode())
    ids = reference(untouched_model, tokenizer, [{"role": "user", "content": QUESTION}])
    assert "".join(chunks) == tokenizer.decode(ids, skip_special_tokens=True)
    assert "Paris" in "".join(chunks)
    assert len(chunks) > 1


async def test_the_prompt_of_a_second_turn_contains_the_first(
    server: Server, client_of: ClientOf, untouched_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    client = client_of(server)
    first = await client.say(QUESTION)
    second = await client.say("Say that again, shorter.")
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first["text"]},
        {"role": "user", "content": "Say that again, shorter."},
    ]
    ids = reference(untouched_model, tokenizer, messages)
    assert second["text"] == tokenizer.decode(ids, skip_special_tokens=True)
    assert await client.texts() == [QUESTION, first["text"], "Say that again, shorter.", second["text"]]


async def test_concurrent_users_have_separate_conversations(server: Server, client_of: ClientOf) -> None:
    anna, ben = client_of(server), client_of(server)
    await asyncio.gather(anna.say("My name is Anna."), ben.say("My name is Ben."))
    await asyncio.gather(anna.say("Who am I?"), ben.say("Who am I?"))
    of_anna, of_ben = await anna.texts(), await ben.texts()
    assert [of_anna[0], of_anna[2]] == ["My name is Anna.", "Who am I?"]
    assert [of_ben[0], of_ben[2]] == ["My name is Ben.", "Who am I?"]
    assert not any("Anna" in text for text in of_ben)
    assert not any("Ben" in text for text in of_anna)


async def test_a_users_conversations_are_separated_by_name(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)
    await client.say("Hello.", conversation="a")
    await client.say("Good evening.", conversation="b")
    assert (await client.texts("a"))[0] == "Hello."
    assert (await client.texts("b"))[0] == "Good evening."
    assert await client.texts() == []


async def test_regenerate_answers_the_last_message_again_and_replaces_the_answer(
    server: Server, client_of: ClientOf
) -> None:
    client = client_of(server)
    first = await client.say("Tell me a number.", params={"temperature": 1.0, "seed": 1})
    again = await client.say(regenerate=True, params={"temperature": 1.0, "seed": 2})
    same = await client.say(regenerate=True, params={"temperature": 1.0, "seed": 1})
    assert again["text"] != first["text"] == same["text"]
    assert again["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"]
    history = await client.history()
    assert [message["content"] for message in history] == ["Tell me a number.", same["text"]]
    assert history[1]["message_id"] == same["message_id"] != first["message_id"]


@pytest.mark.parametrize("text", ["日本の首都はどこですか？", "Say this back to me: 🍣👨‍👩‍👧‍👦🇯🇵", "नमस्ते"])
async def test_text_of_any_script_is_preserved(
    server: Server, client_of: ClientOf, untouched_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    client = client_of(server)
    chunks = []
    async with client.post(user_input=text, params={"max_new_tokens": 10}) as response:
        async for chunk, _ in response.content.iter_chunks():
            chunks.append(chunk.decode())  # fails on an incomplete character
    ids = reference(untouched_model, tokenizer, [{"role": "user", "content": text}], max_new_tokens=10)
    assert "".join(chunks) == tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
    assert await client.texts() == [text, "".join(chunks)]


async def test_a_stop_string_ends_the_answer_and_is_never_sent_in_part(server: Server, client_of: ClientOf) -> None:
    client = client_of(server)
    whole = (await client.say(QUESTION))["text"]
    stop = whole[9:21]  # across several tokens
    chunks = []
    async with client_of(server).post(user_input=QUESTION, params={"stop": [stop]}) as response:
        async for chunk, _ in response.content.iter_chunks():
            chunks.append(chunk.decode())
    assert "".join(chunks) == whole[: whole.index(stop)]
    answer = await client_of(server).say(QUESTION, params={"stop": [stop]})
    assert answer["finish_reason"] == "stop"


async def test_max_new_tokens_and_ignore_eos_count_exactly(server: Server, client_of: ClientOf) -> None:
    answer = await client_of(server).say(QUESTION, params={"max_new_tokens": 11, "ignore_eos": True})
    assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 11)
    natural = await client_of(server).say(QUESTION)
    assert natural["finish_reason"] == "stop"
    assert natural["usage"]["completion_tokens"] < 12


async def test_an_event_stream_contains_start_deltas_and_done(server: Server, client_of: ClientOf) -> None:
    async with client_of(server).post(accept="text/event-stream", user_input=QUESTION) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        message_id = response.headers["X-ChatStream-Last-Generated-Message-Id"]
        events = [event async for event in sse_events(response)]
    names = [name for name, _ in events]
    assert names == ["start", *["delta"] * (len(events) - 2), "done"]
    assert events[0][1] == {"message_id": message_id}
    assert "Paris" in "".join(data["text"] for name, data in events if name == "delta")
    done = events[-1][1]
    assert (done["message_id"], done["finish_reason"]) == (message_id, "stop")
    assert done["usage"]["prompt_tokens"] > 20
    assert done["usage"]["completion_tokens"] >= len(events) - 2
    assert 0 <= done["timing"]["queue_s"] <= done["timing"]["ttft_s"] <= done["timing"]["total_s"]


async def test_every_format_has_the_headers_of_the_protocol(server: Server, client_of: ClientOf) -> None:
    for accept in ("text/plain", "text/event-stream", "application/json"):
        async with client_of(server).post(accept=accept, user_input="Hi", params={"max_new_tokens": 1}) as response:
            await response.read()
            assert response.status == 200
            assert uuid.UUID(response.headers["X-ChatStream-Last-Generated-Message-Id"]).version == 4
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["X-Accel-Buffering"] == "no"
            assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_seeded_server_repeats_its_sequence_of_answers(
    start: StartServer, client_of: ClientOf, small_engine: SmallEngine
) -> None:
    sequences = []
    for _ in range(2):
        server = await start(
            ChatStream(
                engine=small_engine,
                params=GenerationParams(max_new_tokens=8),
                seed=7,
                limits=Limits(context_len=512),
            )
        )
        client = client_of(server)
        sequences.append([(await client.say("Tell me a story."))["text"], (await client.say(regenerate=True))["text"]])
    assert sequences[0] == sequences[1]
    assert sequences[0][0] != sequences[0][1]


async def test_old_turns_are_dropped_from_the_prompt_before_the_context_is_full(
    start: StartServer, client_of: ClientOf, small_engine: SmallEngine
) -> None:
    chat_stream = ChatStream(
        engine=small_engine,
        params=GenerationParams(temperature=0, max_new_tokens=4),
        limits=Limits(context_len=128),
    )
    client = client_of(await start(chat_stream))
    sizes = [
        (await client.say(f"Message number {turn}, and some more words."))["usage"]["prompt_tokens"]
        for turn in range(8)
    ]
    assert max(sizes) <= 128 - 4
    assert any(later < earlier for earlier, later in itertools.pairwise(sizes))
    assert len(await client.history()) == 16  # the history still contains all turns


async def test_a_message_that_exceeds_the_context_is_a_413_with_the_excess(
    start: StartServer, client_of: ClientOf, small_engine: SmallEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    chat_stream = ChatStream(
        engine=small_engine, params=GenerationParams(max_new_tokens=4), limits=Limits(context_len=64)
    )
    server = await start(chat_stream)
    client = client_of(server)
    await client.say("Hello.")
    async with client.post(user_input="word " * 100) as response:
        assert response.status == 413
        error = await response.json()
    assert error["error"] == "too_large"
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "word " * 100}], add_generation_prompt=True)
    assert f"{len(prompt['input_ids']) - 60} tokens too long" in error["detail"]
    assert len(await client.history()) == 2
    assert server.idle
