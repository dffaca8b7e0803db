"""Responses: events, and fields of other endpoints."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.responses import ResponseIncompleteEvent

from aiochatstream import ChatStream
from tests.helpers import StartServer, echo
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
        "reasoning": ({"effort": "high"}, "is not supported"),
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
        assert error.value.param == field
    with pytest.raises(openai.BadRequestError, match=r"text\.format: not supported by this engine"):
        await openai_of(server).responses.create(model="", input="a", text={"format": {"type": "json_object"}})
    with pytest.raises(openai.BadRequestError, match=r"text\.verbosity: is not supported"):
        await openai_of(server).responses.create(model="", input="a", text={"verbosity": "low"})
    assert server.idle
