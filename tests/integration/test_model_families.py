"""Thoughts and tool calls of each family of models, from a real engine to all wire formats."""

from __future__ import annotations

import json
import platform
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError

from tests.helpers import Client, ClientOf, Server, StartServer, sse_events
from tests.model_families import FAMILIES, Call, Family, FamilyScript, chat_stream_of
from tests.web.openai.helpers import tool

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:transformers")]

platform.processor()  # the client calls it, and the first call starts a program

QUESTION, ANOTHER, WEATHER = "天気は？", "And now?", "調べて🔍"
THOUGHT = "東京🤔 as <think>\n\nand [THINK]!"
CONTENT = "晴れ🌞, 25 °C.\n\n\tHat 👒!"
PROSE = "調べます。"
RESULT = "25 °C"
CALLS: list[Call] = [
    ("get_weather", {"city": "東京🗼", "note": '"a",\n{b} </think>!'}),
    ("get_time", {"city": "Paris"}),
]
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER_PARAMETERS = {**CITY, "properties": {"city": {"type": "string"}, "note": {"type": "string"}}}
TOOLS = [tool("get_weather", WEATHER_PARAMETERS), tool("get_time", CITY)]

each = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
each_with_thoughts = pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES.values() if family.thought],
    ids=[name for name, family in FAMILIES.items() if family.thought],
)
each_with_calls = pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES.values() if family.write_calls],
    ids=[name for name, family in FAMILIES.items() if family.write_calls],
)


@pytest.fixture
def script(family: Family) -> FamilyScript:
    return FamilyScript(family)


@pytest.fixture
async def server(start: StartServer, family: Family, script: FamilyScript) -> Server:
    return await start(chat_stream_of(family, script))


@pytest.fixture
async def openai(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def client(server: Server, client_of: ClientOf) -> Client:
    return client_of(server)


@each
async def test_a_thought_is_separate_in_all_formats_of_the_chat(
    family: Family, script: FamilyScript, client: Client
) -> None:
    script.answers = {question: family.answer(CONTENT, THOUGHT) for question in (QUESTION, ANOTHER)}
    thought = THOUGHT if family.thought else None
    async with client.post(accept="text/event-stream", user_input=QUESTION) as response:
        events = [event async for event in sse_events(response)]
    thinking, text = ("".join(data["text"] for kind, data in events if kind == name) for name in ("thinking", "delta"))
    assert (thinking or None, text) == (thought, CONTENT)
    kinds = [kind for kind, _ in events if kind != "queued"]
    assert kinds == sorted(kinds, key=["start", "thinking", "delta", "done"].index)
    assert events[-1][1]["finish_reason"] == "stop"
    assert (events[-1][1]["usage"]["thinking_tokens"] > 0) == bool(thought)

    async with client.post(accept="text/plain", conversation="text", user_input=QUESTION) as response:
        assert await response.text() == CONTENT

    answer = await client.say(ANOTHER)
    assert (answer.get("thinking"), answer["text"]) == (thought, CONTENT)
    history = await client.history()
    assert [(message.get("thinking"), message["content"]) for message in history] == [
        (None, QUESTION),
        (thought, CONTENT),
        (None, ANOTHER),
        (thought, CONTENT),
    ]
    assert CONTENT in script.prompts[-1]
    assert (THOUGHT in script.prompts[-1]) == family.keeps_thoughts


@each
async def test_a_thought_is_separate_in_openais_api(family: Family, script: FamilyScript, openai: AsyncOpenAI) -> None:
    script.answers[QUESTION] = family.answer(CONTENT, THOUGHT)
    thought = THOUGHT if family.thought else None
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    create: Any = openai.chat.completions.create
    whole = await create(model="", messages=messages)
    message = whole.choices[0].message.to_dict()
    assert [message.get(name) for name in ("content", "reasoning_content", "reasoning")] == [CONTENT, thought, thought]
    assert whole.choices[0].finish_reason == "stop"
    reasoning_tokens = whole.usage.completion_tokens_details.reasoning_tokens
    assert (reasoning_tokens >= len(family.ids_of(THOUGHT))) == bool(thought)

    stream = await create(model="", messages=messages, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    deltas = [choice.delta.to_dict() for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.get("content") or "" for delta in deltas) == CONTENT
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == (thought or "")
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == reasoning_tokens

    again = await create(model="", messages=[*messages, message, *messages], max_tokens=1)
    assert again.choices[0].finish_reason == "length"
    assert (THOUGHT in script.prompts[-1]) == family.keeps_thoughts


@each_with_thoughts
async def test_a_thought_that_has_begun_is_continued(family: Family, script: FamilyScript, openai: AsyncOpenAI) -> None:
    create: Any = openai.chat.completions.create
    start_of_thought = THOUGHT.partition(" ")[0]
    whole = family.answer(CONTENT, THOUGHT)
    script.answers[start_of_thought] = whole.partition(start_of_thought)[2]
    messages: list[Any] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "", "reasoning_content": start_of_thought},
    ]
    options: dict[str, Any] = {"messages": messages, "extra_body": {"continue_final_message": True}}
    if not family.renders_newest_thought:
        with pytest.raises(BadRequestError, match="cannot continue a thought"):
            await create(model="", **options)
        return
    message = (await create(model="", **options)).choices[0].message.to_dict()
    assert (start_of_thought + message["reasoning_content"], message["content"]) == (THOUGHT, CONTENT)


@each_with_calls
async def test_calls_follow_a_thought_and_text(family: Family, script: FamilyScript, openai: AsyncOpenAI) -> None:
    thought = THOUGHT if family.thought else None
    messages: list[Any] = [{"role": "user", "content": WEATHER}]
    create: Any = openai.chat.completions.create

    def check(choice: Any, calls: list[Call]) -> None:
        assert choice.finish_reason == "tool_calls"
        assert (choice.message.to_dict().get("reasoning"), choice.message.content) == (thought, PROSE)
        functions = [call.function for call in choice.message.tool_calls]
        assert [(function.name, json.loads(function.arguments)) for function in functions] == calls

    several = CALLS[: family.max_calls]
    script.answers[WEATHER] = family.answer(PROSE, THOUGHT, several)
    async with openai.chat.completions.stream(model="", messages=messages, tools=TOOLS) as stream:
        check((await stream.get_final_completion()).choices[0], several)

    script.answers[WEATHER] = family.answer(PROSE, THOUGHT, CALLS[:1])
    whole = await create(model="", messages=messages, tools=TOOLS)
    check(whole.choices[0], CALLS[:1])

    message = whole.choices[0].message.to_dict()
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": RESULT}
    script.answers[RESULT] = family.answer(CONTENT, THOUGHT)
    more = await create(model="", messages=[*messages, message, result], tools=TOOLS)
    assert more.choices[0].message.content == CONTENT
    turn = script.prompts[-1].partition(WEATHER)[2]
    assert CALLS[0][0] in turn
    assert CALLS[0][1]["city"] in turn
    assert (THOUGHT in turn) == family.keeps_thoughts_of_calls


@each_with_calls
async def test_forced_forms_begin_after_the_thought(family: Family, script: FamilyScript, openai: AsyncOpenAI) -> None:
    name, arguments = "get_time", {"city": "東京🗼"}
    body = json.dumps(arguments, ensure_ascii=False)
    create: Any = openai.chat.completions.create

    async def answer(text: str, **options: Any) -> Any:
        script.answers[WEATHER] = family.answer(text, THOUGHT)
        whole = await create(model="", messages=[{"role": "user", "content": WEATHER}], **options)
        message = whole.choices[0].message
        assert message.to_dict().get("reasoning") == (THOUGHT if family.thought else None)
        return message

    if not family.tokenizer.is_fast:
        with pytest.raises(BadRequestError, match="only fast tokenizers are supported"):
            await answer(body, tools=TOOLS, tool_choice="required")
        return
    required = f'[{{"name": "{name}", "arguments": {body}}}]'
    for text, choice in ((required, "required"), (body, {"type": "function", "function": {"name": name}})):
        message = await answer(text, tools=TOOLS, tool_choice=choice)
        [call] = message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == (name, arguments)
        assert not message.content
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    assert (await answer(body, response_format=schema)).content == body


@each_with_thoughts
async def test_a_long_thought_is_closed(family: Family, script: FamilyScript, client: Client) -> None:
    begin = family.open_thought + THOUGHT
    script.answers[QUESTION] = begin + family.ends[0]
    thinking_tokens = (await client.say(QUESTION))["usage"]["thinking_tokens"]
    script.answers[QUESTION] = begin + CONTENT + family.ends[0]
    closed = await client.say(QUESTION, params={"max_thinking_tokens": thinking_tokens})
    assert (closed["thinking"], closed["text"], closed["finish_reason"]) == (THOUGHT, CONTENT, "stop")

    cut_off = await client.say(QUESTION, params={"max_new_tokens": len(family.ids_of(begin)) - 2})
    assert (cut_off["text"], cut_off["finish_reason"]) == ("", "thinking_length")
    assert THOUGHT.startswith(cut_off["thinking"])


@each_with_thoughts
async def test_the_switch_of_the_template_is_in_the_prompt(
    family: Family, script: FamilyScript, client: Client
) -> None:
    for level in ("off", "low", "medium", "high"):
        params = {"thinking": level, "max_new_tokens": 1}
        async with client.post(user_input=QUESTION, params=params, conversation=level) as response:
            error = await response.text()
        if level in family.switch:
            assert response.status == 200
            assert family.switch[level] in script.prompts[-1]
        elif not family.switch:
            assert response.status == 422
            assert "no switch for thoughts" in error
    effort, level = ("none", "off") if "off" in family.switch else ("low", "low")
    messages = [{"role": "user", "content": QUESTION}]
    async with client.post(
        "/v1/chat/completions", messages=messages, reasoning_effort=effort, max_tokens=1
    ) as response:
        assert response.status == 200
    assert family.switch.get(level, "") in script.prompts[-1]
