"""Chat completions without a real model: streams, tool calls, and messages for the engine."""

from __future__ import annotations

import json
from typing import Any, cast

import openai
import pytest
from openai import AsyncStream
from openai.types.chat import ChatCompletionMessageFunctionToolCallParam, ChatCompletionMessageParam

from aiochatstream import ChatPrompt, ChatStream, Delta, TokenLogprob, ToolCall
from aiochatstream.prompts.presets.base_model import ChatPromptCyberAgentOpenCalm
from aiochatstream.web.openai.chat import template_message
from aiochatstream.web.openai.chat_request import ChatMessage
from tests.engines.tokenizers import BYTE_FALLBACK
from tests.engines.transformers.tiny_models import tiny
from tests.helpers import STUCK_THOUGHT, THOUGHTFUL, ClientOf, DeltaEngine, StartServer, echo
from tests.web.openai.helpers import CALLS_TEMPLATE, HI, ConstrainedEngine, OpenAIClientOf, SpyEngine, tool

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


async def test_an_empty_message_to_continue_is_a_new_answer(start: StartServer, openai_of: OpenAIClientOf) -> None:
    engine = DeltaEngine(Delta("four", finish_reason="stop"))
    create = openai_of(await start(ChatStream(engine=engine))).chat.completions.create
    for empty in ({"content": ""}, {"content": None}, {}, {"content": "", "reasoning_content": ""}):
        last: Any = {"role": "assistant", **empty}
        await create(model="", messages=[*HI, last], extra_body={"continue_final_message": True})
    assert [(prompt.messages, prompt.continued) for prompt in engine.prompts] == [(HI, False)] * 4


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


async def test_thoughts_are_the_reasoning_of_a_message(start: StartServer, openai_of: OpenAIClientOf) -> None:
    create = openai_of(await start(ChatStream(engine=DeltaEngine(*THOUGHTFUL)))).chat.completions.create
    answer = (await create(model="", messages=HI)).to_dict()
    [choice] = cast("list[dict[str, Any]]", answer["choices"])
    assert choice["message"]["content"] == "It is four."
    assert choice["message"]["reasoning_content"] == choice["message"]["reasoning"] == "Let me see."
    assert cast("dict[str, Any]", answer["usage"])["completion_tokens_details"] == {"reasoning_tokens": 4}
    stream = await create(model="", messages=HI, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta.to_dict() for chunk in chunks[:-1]]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Let me ", "reasoning": "Let me "},
        {"reasoning_content": "see.", "reasoning": "see."},
        {"content": "It is "},
        {"content": "four."},
        {},
    ]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 4


async def test_answers_without_thoughts_have_no_reasoning(start: StartServer, openai_of: OpenAIClientOf) -> None:
    answer = (
        await openai_of(await start(ChatStream(engine=echo))).chat.completions.create(model="", messages=HI)
    ).to_dict()
    [choice] = cast("list[dict[str, Any]]", answer["choices"])
    assert choice["message"].keys() == {"role", "content", "refusal"}
    assert cast("dict[str, Any]", answer["usage"])["completion_tokens_details"] == {"reasoning_tokens": 0}


async def test_a_thought_that_uses_all_tokens_has_the_finish_reason_length(
    start: StartServer, openai_of: OpenAIClientOf
) -> None:
    create = openai_of(await start(ChatStream(engine=DeltaEngine(*STUCK_THOUGHT)))).chat.completions.create
    [choice] = (await create(model="", messages=HI)).choices
    assert (choice.finish_reason, choice.message.content) == ("length", "")


async def test_logprobs_of_thoughts_are_omitted(start: StartServer, openai_of: OpenAIClientOf) -> None:
    class WithTokenizer(DeltaEngine):
        tokenizer = BYTE_FALLBACK
        vocab_size = len(BYTE_FALLBACK)

    def delta(text: str, *, thinking: bool) -> Delta:
        token_id = BYTE_FALLBACK(text, add_special_tokens=False)["input_ids"][-1]
        fields = {"thinking": text, "thinking_tokens": 1} if thinking else {"text": text}
        return Delta(token_ids=(token_id,), logprobs=(TokenLogprob(token_id, -1.0),), **fields)

    deltas = [delta("a", thinking=True), delta("b", thinking=False), Delta(finish_reason="stop")]
    create = openai_of(
        await start(ChatStream(engine=WithTokenizer(*deltas), chat_prompt_clazz=ChatPromptCyberAgentOpenCalm))
    ).chat.completions.create
    [choice] = (await create(model="", messages=HI, logprobs=True)).choices
    assert choice.message.content == "b"
    assert choice.logprobs is not None
    assert [logprob.token for logprob in choice.logprobs.content or ()] == ["b"]


@pytest.mark.parametrize("fields", [{"reasoning_content": "Hm."}, {"reasoning": "Hm."}])
async def test_templates_receive_the_thoughts_of_assistant_messages(fields: dict[str, str]) -> None:
    message = ChatMessage.model_validate({"role": "assistant", "content": "four", **fields})
    assert template_message(message) == {"role": "assistant", "content": "four", "reasoning_content": "Hm."}
    message = ChatMessage.model_validate({"role": "user", "content": "four", **fields})
    assert template_message(message) == {"role": "user", "content": "four"}


async def test_invalid_thoughts_of_messages_are_refused(start: StartServer, openai_of: OpenAIClientOf) -> None:
    create = openai_of(await start(ChatStream(engine=echo))).chat.completions.create
    message: Any = {"role": "assistant", "content": "four", "reasoning": {"text": "Hm."}}
    with pytest.raises(openai.BadRequestError, match=r"messages\.1\.reasoning: must be a string"):
        await create(model="", messages=[*HI, message, *HI])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("template", [CALLS_TEMPLATE, None])
async def test_calls_that_the_engine_reads_are_tool_calls(
    start: StartServer, openai_of: OpenAIClientOf, stream: bool, template: dict[str, Any] | None
) -> None:
    calls = (ToolCall("f", '{"x":1}', "<f>"), ToolCall("unknown", "{}", "<unknown>"), ToolCall("f", "{}", "<f2>"))
    engine = DeltaEngine(
        Delta(thinking="I call f."),
        Delta("Wait. "),
        *(Delta(tool_calls=(call,)) for call in calls),
        Delta(finish_reason="stop"),
        response_template=template,
    )
    create = openai_of(await start(ChatStream(engine=engine))).chat.completions.create
    answer = await create(model="", messages=HI, tools=[tool("f")], stream=stream)
    functions: list[Any]
    if isinstance(answer, AsyncStream):
        choices = [choice async for chunk in answer for choice in chunk.choices]
        content = "".join(choice.delta.content or "" for choice in choices)
        functions = [call.function for choice in choices for call in choice.delta.tool_calls or ()]
        finish_reason = choices[-1].finish_reason
        assert [call.index for choice in choices for call in choice.delta.tool_calls or ()] == [0, 1]
    else:
        [choice] = answer.choices
        content, finish_reason = choice.message.content or "", choice.finish_reason
        functions = [call.function for call in choice.message.tool_calls or () if call.type == "function"]
    assert [(function.name, function.arguments) for function in functions] == [("f", '{"x":1}'), ("f", "{}")]
    assert (content, finish_reason) == ("Wait. <unknown>", "tool_calls")
    assert [tool_["function"]["name"] for tool_ in engine.prompts[0].tools] == ["f"]


async def test_text_is_parsed_if_the_engines_template_reads_no_calls(
    start: StartServer, openai_of: OpenAIClientOf
) -> None:
    text = '<tool_call>{"name": "f"}</tool_call>'
    for template, finish_reason in (({"fields": {"thinking": {}}}, "tool_calls"), (CALLS_TEMPLATE, "stop")):
        engine = DeltaEngine(Delta(text, finish_reason="stop"), response_template=template)
        create = openai_of(await start(ChatStream(engine=engine))).chat.completions.create
        [choice] = (await create(model="", messages=HI, tools=[tool("f")])).choices
        assert choice.finish_reason == finish_reason


@pytest.mark.parametrize("more", [{}, {"tools": [tool("f")], "tool_choice": "none"}])
async def test_calls_are_text_if_no_tool_may_be_called(
    start: StartServer, openai_of: OpenAIClientOf, more: dict[str, Any]
) -> None:
    engine = DeltaEngine(Delta(tool_calls=(ToolCall("f", "{}", "<f>"),)), Delta(finish_reason="stop"))
    [choice] = (
        await openai_of(await start(ChatStream(engine=engine))).chat.completions.create(model="", messages=HI, **more)
    ).choices
    assert (choice.message.content, choice.finish_reason, engine.prompts[0].tools) == ("<f>", "stop", ())


async def test_forced_calls_follow_the_thought(start: StartServer, openai_of: OpenAIClientOf) -> None:
    forced: list[tuple[Any, str, str]] = [
        ("required", '[{"name": "f", "arguments": {}}]', "tool_calls"),
        ({"type": "function", "function": {"name": "f"}}, "{}", "stop"),
    ]
    for choice, text, finish_reason in forced:
        engine = DeltaEngine(
            Delta(thinking="Hm."), Delta(text), Delta(finish_reason="stop"), response_template=CALLS_TEMPLATE
        )
        create = openai_of(await start(ChatStream(engine=engine))).chat.completions.create
        [answer] = (await create(model="", messages=HI, tools=[tool("f")], tool_choice=choice)).choices
        calls: list[Any] = answer.message.tool_calls or []
        [call] = calls
        assert (call.function.name, call.function.arguments) == ("f", "{}")
        assert answer.finish_reason == finish_reason
        assert answer.message.to_dict()["reasoning"] == "Hm."
