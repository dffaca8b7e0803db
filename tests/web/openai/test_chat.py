"""Chat completions without a real model: streams, tool calls, and messages for the engine."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import AsyncStream
from openai.types.chat import ChatCompletionMessageFunctionToolCallParam, ChatCompletionMessageParam

from aiochatstream import ChatPrompt, ChatStream
from aiochatstream.prompts.presets.base_model import ChatPromptCyberAgentOpenCalm
from tests.engines.tokenizers import BYTE_FALLBACK
from tests.engines.transformers.tiny_models import tiny
from tests.helpers import ClientOf, StartServer, echo
from tests.web.openai.helpers import HI, ConstrainedEngine, OpenAIClientOf, SpyEngine, tool

CALL: ChatCompletionMessageFunctionToolCallParam = {
    "id": "1",
    "type": "function",
    "function": {"name": "f", "arguments": "{}"},
}


async def test_a_stream_contains_the_role_the_text_the_finish_reason_and_the_usage(
    start: StartServer, openai_of: OpenAIClientOf
) -> None:
    client = openai_of(await start(ChatStream(engine=echo)))
    stream = await client.chat.completions.create(
        model="", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    *text_chunks, last = chunks
    deltas = [chunk.choices[0].delta for chunk in text_chunks]
    assert [delta.role for delta in deltas] == ["assistant", None, None, None, None]
    assert [delta.content for delta in deltas] == ["", "one ", "two ", "three ", None]
    assert [chunk.choices[0].finish_reason for chunk in text_chunks] == [None, None, None, None, "stop"]
    assert all(chunk.usage is None for chunk in text_chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 3
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens == 0


async def test_a_stream_without_usage_ends_with_done(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    async with client.post("/v1/chat/completions", messages=HI, stream=True) as response:
        text = await response.text()
        assert response.content_type == "text/event-stream"
        assert response.headers["X-Accel-Buffering"] == "no"
    assert text.endswith("data: [DONE]\n\n")
    assert "usage" not in text


async def test_a_refusal_replaces_the_content(start: StartServer, openai_of: OpenAIClientOf) -> None:
    engine = SpyEngine("ok")
    refusal: ChatCompletionMessageParam = {
        "role": "assistant",
        "content": None,
        "refusal": "I cannot.",
        "function_call": None,
        "audio": None,
    }
    await openai_of(await start(ChatStream(engine=engine))).chat.completions.create(
        model="", messages=[*HI, refusal, *HI]
    )
    assert engine.messages == [[*HI, {"role": "assistant", "content": "I cannot."}, *HI]]


@pytest.mark.parametrize("empty", [{"content": None}, {}])
async def test_an_assistants_message_may_be_empty(
    start: StartServer, openai_of: OpenAIClientOf, empty: dict[str, Any]
) -> None:
    engine = SpyEngine("ok")
    create = openai_of(await start(ChatStream(engine=engine))).chat.completions.create
    message: Any = {"role": "assistant", **empty}
    await create(model="", messages=[*HI, message, *HI])
    assert engine.messages == [[*HI, {"role": "assistant", "content": ""}, *HI]]


async def test_the_engine_receives_a_message_to_continue_as_the_open_answer(
    start: StartServer, openai_of: OpenAIClientOf
) -> None:
    engine = SpyEngine(" four")
    create = openai_of(await start(ChatStream(engine=engine))).chat.completions.create
    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "Count."},
        *HI,
        {"role": "assistant", "content": "three"},
    ]
    for more in ({}, {"add_generation_prompt": False}):
        answer = await create(model="", messages=messages, extra_body={"continue_final_message": True, **more})
        assert answer.choices[0].message.content == " four"
    assert engine.messages == [messages, messages]


async def test_content_without_parts_is_null(start: StartServer, openai_of: OpenAIClientOf) -> None:
    engine = SpyEngine("ok")
    create = openai_of(await start(ChatStream(engine=engine))).chat.completions.create
    call: ChatCompletionMessageParam = {"role": "assistant", "content": [], "tool_calls": [CALL]}
    result: ChatCompletionMessageParam = {"role": "tool", "tool_call_id": "1", "content": "5"}
    await create(model="", messages=[*HI, call, result], tools=[tool("f")])
    with pytest.raises(openai.BadRequestError, match="content: must be a string"):
        await create(model="", messages=[{"role": "user", "content": []}])


async def test_an_unpaired_surrogate_in_the_arguments_of_a_call_is_a_400(
    start: StartServer, openai_of: OpenAIClientOf
) -> None:
    create = openai_of(
        await start(ChatStream(model=tiny(), tokenizer=BYTE_FALLBACK, chat_prompt_clazz=ChatPromptCyberAgentOpenCalm))
    ).chat.completions.create
    call = CALL | {"function": {"name": "f", "arguments": '{"city": "\\ud83d"}'}}
    message: ChatCompletionMessageParam = {"role": "assistant", "content": "", "tool_calls": [call]}
    with pytest.raises(openai.BadRequestError, match="arguments of tool_calls must be JSON without unpaired surrogate"):
        await create(model="", messages=[*HI, message, *HI], tools=[tool("f")])


@pytest.mark.parametrize("stream", [False, True])
async def test_without_parallel_calls_only_the_first_call_is_returned(
    start: StartServer, openai_of: OpenAIClientOf, stream: bool
) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    create = openai_of(await start(ChatStream(engine=SpyEngine(call, call)))).chat.completions.create
    for parallel, count in ((True, 2), (False, 1)):
        answer = await create(model="", messages=HI, tools=[tool("f")], parallel_tool_calls=parallel, stream=stream)
        functions: list[Any]
        if isinstance(answer, AsyncStream):
            deltas = [delta async for chunk in answer for delta in chunk.choices[0].delta.tool_calls or ()]
            functions = [delta.function for delta in deltas]
        else:
            calls = answer.choices[0].message.tool_calls or ()
            functions = [call.function for call in calls if call.type == "function"]
        assert [function.arguments for function in functions] == ['{"x": 1}'] * count


async def test_replacements_do_not_apply_to_constrained_answers(start: StartServer, openai_of: OpenAIClientOf) -> None:
    class Lines(ChatPrompt):
        def get_replacement_when_output(self) -> list[tuple[str, str]]:
            return [("<NL>", "\n")]

    engine = ConstrainedEngine(SpyEngine('{"a": "b<NL>c"}'))
    create = openai_of(await start(ChatStream(engine=engine, chat_prompt_clazz=Lines))).chat.completions.create
    plain = await create(model="", messages=HI)
    assert plain.choices[0].message.content == '{"a": "b\nc"}'
    constrained = await create(model="", messages=HI, response_format={"type": "json_object"})
    assert json.loads(constrained.choices[0].message.content or "") == {"a": "b<NL>c"}
