"""Responses: events, and fields of other endpoints."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseIncompleteEvent,
    ResponseOutputItemDoneEvent,
    ResponseReasoningItem,
)

from aiochatstream import ChatStream
from aiochatstream.web.openai.response_request import ResponseRequest
from tests.helpers import STUCK_THOUGHT, THOUGHTFUL, DeltaEngine, StartServer, echo
from tests.web.openai.helpers import OpenAIClientOf


async def test_the_client_assembles_a_response_from_its_events(start: StartServer, openai_of: OpenAIClientOf) -> None:
    client = openai_of(await start(ChatStream(engine=echo)))
    whole = await client.responses.create(model="", input=[{"role": "user", "content": "a b"}], metadata={"k": "v"})
    assert (whole.output_text, whole.status, whole.metadata) == ("a b ", "completed", {"k": "v"})
    assert whole.to_dict()["store"] is False
    assert whole.usage is not None
    assert whole.usage.output_tokens == 2
    stream = await client.responses.create(model="", input="a b", max_output_tokens=1, stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    last = events[-1]
    assert isinstance(last, ResponseIncompleteEvent)
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output_text == "a "


async def test_invalid_and_unsupported_fields_of_responses_are_a_400_with_the_field(
    start: StartServer, openai_of: OpenAIClientOf
) -> None:
    server = await start(ChatStream(engine=echo))
    refused: dict[str, tuple[Any, str]] = {
        "previous_response_id": ("x", "is not supported"),
        "tools": ([{"type": "web_search"}], "is not supported"),
        "background": (True, "is not supported"),
        "n": (2, "is not supported"),
        "max_output_tokens": (0, "must be a whole number of tokens from 1"),
        "top_logprobs": (1, "not supported by this engine"),
        "max_tokens": (5, "must be sent as max_output_tokens"),  # fields of other endpoints
        "response_format": ({"type": "json_object"}, "must be sent as text.format"),
        "logprobs": (True, "must be sent as top_logprobs"),
        "include": ("x", "include: must be a valid array"),
    }
    for field, (value, message) in refused.items():
        with pytest.raises(openai.BadRequestError, match=message) as error:
            await openai_of(server).responses.create(model="", input="a", extra_body={field: value})
        assert (error.value.param or "").partition(".")[0] == field
    effort: Any = {"effort": "huge"}
    with pytest.raises(openai.BadRequestError, match=r"reasoning\.effort: must be .none., .minimal."):
        await openai_of(server).responses.create(model="", input="a", reasoning=effort)
    with pytest.raises(openai.BadRequestError, match=r"text\.format: not supported by this engine"):
        await openai_of(server).responses.create(model="", input="a", text={"format": {"type": "json_object"}})
    with pytest.raises(openai.BadRequestError, match=r"text\.verbosity: is not supported"):
        await openai_of(server).responses.create(model="", input="a", text={"verbosity": "low"})
    assert server.idle


async def test_thoughts_are_a_reasoning_item_before_the_message(start: StartServer, openai_of: OpenAIClientOf) -> None:
    create = openai_of(await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)))).responses.create
    whole = await create(model="", input="hi")
    reasoning, message = whole.output
    assert isinstance(reasoning, ResponseReasoningItem)
    assert reasoning.id.startswith("rs_")
    assert (reasoning.summary, reasoning.status) == ([], "completed")
    assert [part.to_dict() for part in reasoning.content or ()] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert (message.type, whole.output_text, whole.status) == ("message", "It is four.", "completed")
    assert whole.usage is not None
    assert whole.usage.output_tokens_details.reasoning_tokens == 4
    events = [event async for event in await create(model="", input="hi", stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [(event.type, getattr(event, "output_index", None)) for event in events] == [
        ("response.created", None),
        ("response.in_progress", None),
        ("response.output_item.added", 0),
        ("response.content_part.added", 0),
        ("response.reasoning_text.delta", 0),
        ("response.reasoning_text.delta", 0),
        ("response.reasoning_text.done", 0),
        ("response.content_part.done", 0),
        ("response.output_item.done", 0),
        ("response.output_item.added", 1),
        ("response.content_part.added", 1),
        ("response.output_text.delta", 1),
        ("response.output_text.delta", 1),
        ("response.output_text.done", 1),
        ("response.content_part.done", 1),
        ("response.output_item.done", 1),
        ("response.completed", None),
    ]
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent)
    assert [item.type for item in last.response.output] == ["reasoning", "message"]
    done = events[8]
    assert isinstance(done, ResponseOutputItemDoneEvent)
    assert done.item == last.response.output[0]


async def test_a_thought_that_uses_all_tokens_is_an_incomplete_response(
    start: StartServer, openai_of: OpenAIClientOf
) -> None:
    create = openai_of(await start(ChatStream(engine=DeltaEngine(*STUCK_THOUGHT)))).responses.create
    response = await create(model="", input="hi")
    [item] = response.output
    assert isinstance(item, ResponseReasoningItem)
    assert (response.status, item.status) == ("incomplete", "incomplete")


async def test_a_response_can_be_the_input_of_the_next_one(start: StartServer, openai_of: OpenAIClientOf) -> None:
    engine = DeltaEngine(*THOUGHTFUL)
    create = openai_of(await start(ChatStream(engine=engine))).responses.create
    first = await create(model="", input="hi")
    output: Any = [item.to_dict() for item in first.output]
    await create(model="", input=[{"role": "user", "content": "hi"}, *output, {"role": "user", "content": "And?"}])
    assert [message["content"] for message in engine.prompts[1].messages] == ["hi", "It is four.", "And?"]


def test_thoughts_of_the_input_belong_to_the_next_message_of_the_assistant() -> None:
    def thought(**fields: Any) -> dict[str, Any]:
        return {"type": "reasoning", "id": "rs_1", **fields}

    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "four"}
    parts = [{"type": "reasoning_text", "text": "Let me "}]
    items = [
        user,
        thought(summary=[{"type": "summary_text", "text": "A summary."}], content=parts),
        thought(summary=[{"type": "summary_text", "text": "see."}]),
        answer,
        thought(summary=[], encrypted_content="secret"),
        answer,
        thought(summary=[], content=parts),  # of an answer that is missing
        user,
    ]
    request = ResponseRequest.model_validate({"input": items})
    assert request.messages == [user, {**answer, "reasoning_content": "Let me see."}, answer, user]


async def test_invalid_thoughts_of_the_input_are_refused(start: StartServer, openai_of: OpenAIClientOf) -> None:
    create = openai_of(await start(ChatStream(engine=echo))).responses.create
    invalid: list[Any] = [[1], [{"type": "reasoning_text"}], [{"type": "reasoning_text", "text": 1}], 5, {"text": "x"}]
    for content in invalid:
        items: Any = [{"role": "user", "content": "hi"}, {"type": "reasoning", "content": content}]
        with pytest.raises(openai.BadRequestError, match=r"input\.1\.content: must be "):
            await create(model="", input=items)
    only: Any = [{"type": "reasoning", "id": "rs_1", "summary": []}]
    with pytest.raises(openai.BadRequestError, match="input: must contain a message"):
        await create(model="", input=only)
