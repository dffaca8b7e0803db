"""Thoughts and tool calls of each family of models, from a real engine to all wire formats."""

from __future__ import annotations

import json
import platform
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.helpers import Client, ClientOf, Server, StartServer, sse_events
from tests.model_families import FAMILIES, Call, Family, FamilyScript, chat_stream_of
from tests.web.openai.helpers import tool

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:transformers")]

platform.processor()  # the client calls it, and the first call starts a program

QUESTION, ANOTHER, WEATHER = "今日の天気は？", "And tomorrow?", "東京の天気を調べて🔍"
THOUGHT = "東京かな？🤔 Let me think.\n\nHe wrote <think> or [THINK]!"
CONTENT = "晴れです。🌞 It is sunny, 25°C.\n\n\tBring a hat 👒!"
PROSE = "天気を調べます。"
CALLS: list[Call] = [
    ("get_weather", {"city": "東京🗼", "note": 'a "quoted" text,\n{and} </think>!'}),
    ("get_time", {"city": "Paris"}),
]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    tool("get_weather", {**CITY, "properties": {**CITY["properties"], "note": {"type": "string"}}}),
    tool("get_time", CITY),
]

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


def thought_of(family: Family) -> dict[str, str]:
    """Return the field of an answer with its thought."""
    return {"thinking": THOUGHT} if family.thought else {}


@each
async def test_a_thought_is_separate_in_all_formats_of_the_chat(
    family: Family, script: FamilyScript, client: Client
) -> None:
    script.answers = {question: family.answer(CONTENT, THOUGHT) for question in (QUESTION, ANOTHER)}
    async with client.post(accept="text/event-stream", user_input=QUESTION) as response:
        events = [event async for event in sse_events(response)]
    thinking, text = ("".join(data["text"] for kind, data in events if kind == name) for name in ("thinking", "delta"))
    assert (thinking, text) == (thought_of(family).get("thinking", ""), CONTENT)
    assert [name for name, _ in events if name != "queued"] == sorted(
        (name for name, _ in events if name != "queued"), key=["start", "thinking", "delta", "done"].index
    )
    assert events[-1][1]["finish_reason"] == "stop"
    assert (events[-1][1]["usage"]["thinking_tokens"] > 0) == bool(thinking)

    async with client.post(accept="text/plain", conversation="text", user_input=QUESTION) as response:
        assert await response.text() == CONTENT

    answer = await client.say(ANOTHER)
    assert answer["text"] == CONTENT
    assert answer.get("thinking") == thought_of(family).get("thinking")
    history = await client.history()
    fields = [{key: message[key] for key in ("content", "thinking") if key in message} for message in history]
    both = {"content": CONTENT, **thought_of(family)}
    assert fields == [{"content": QUESTION}, both, {"content": ANOTHER}, both]

    second = script.prompts[-1]
    assert CONTENT.strip() in second
    assert ("Let me think" in second) == family.keeps_thoughts


@each
async def test_a_thought_is_separate_in_openais_api(family: Family, script: FamilyScript, openai: AsyncOpenAI) -> None:
    script.answers[QUESTION] = family.answer(CONTENT, THOUGHT)
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    create = openai.chat.completions.create
    whole = await create(model="", messages=messages)
    message = whole.choices[0].message.to_dict()
    thought = thought_of(family).get("thinking")
    assert (message["content"], message.get("reasoning_content"), message.get("reasoning")) == (
        CONTENT,
        thought,
        thought,
    )
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    reasoning_tokens = whole.usage.completion_tokens_details.reasoning_tokens or 0
    assert reasoning_tokens == (len(family.ids_of(family.answer("", THOUGHT))) - end_tokens(family) if thought else 0)

    stream = await create(model="", messages=messages, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    deltas = [choice.delta.to_dict() for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.get("content") or "" for delta in deltas) == CONTENT
    assert "".join(str(delta.get("reasoning_content") or "") for delta in deltas) == (thought or "")
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )  # type: ignore[union-attr]

    again = await create(model="", messages=[*messages, message, *messages])
    assert again.choices[0].message.content == CONTENT
    assert ("Let me think" in script.prompts[-1]) == family.keeps_thoughts


def end_tokens(family: Family) -> int:
    """Return the number of tokens after the thought in an answer without content."""
    marks = family.content.format("")
    return len(family.ids_of(marks + family.ends[0]))


@each_with_calls
@pytest.mark.parametrize("count", [1, 2])
async def test_calls_follow_a_thought_and_text(
    family: Family, script: FamilyScript, openai: AsyncOpenAI, count: int
) -> None:
    if count > family.max_calls:
        pytest.skip("The family writes one call at a time.")
    calls = CALLS[:count]
    script.answers[WEATHER] = family.answer(PROSE, THOUGHT, calls)
    messages: list[Any] = [{"role": "user", "content": WEATHER}]
    whole = await openai.chat.completions.create(model="", messages=messages, tools=TOOLS)
    choice = whole.choices[0]
    message = choice.message.to_dict()
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == PROSE
    assert message.get("reasoning") == thought_of(family).get("thinking")
    assert [
        (call.function.name, json.loads(call.function.arguments))
        for call in choice.message.tool_calls or ()
        if call.type == "function"
    ] == calls

    async with openai.chat.completions.stream(model="", messages=messages, tools=TOOLS) as stream:
        final = (await stream.get_final_completion()).choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.content == PROSE
    assert [
        (call.function.name, json.loads(call.function.arguments)) for call in final.message.tool_calls or ()
    ] == calls

    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"result {at}"}
        for at, call in enumerate(message["tool_calls"])  # type: ignore[arg-type]
    ]
    script.answers["result 0"] = family.answer(CONTENT, THOUGHT)
    more = await openai.chat.completions.create(model="", messages=[*messages, message, *results], tools=TOOLS)
    assert more.choices[0].message.content == CONTENT
    prompt = script.prompts[-1]
    assert all(name in prompt.partition(WEATHER)[2] and arguments["city"] in prompt for name, arguments in calls)
    assert ("Let me think" in prompt) == family.keeps_thoughts_of_calls


@each_with_calls
async def test_forced_forms_begin_after_the_thought(family: Family, script: FamilyScript, openai: AsyncOpenAI) -> None:
    name, arguments = "get_time", {"city": "東京🗼"}
    body = json.dumps(arguments, ensure_ascii=False)
    call = f'[{{"name": "{name}", "arguments": {body}}}]'
    create = openai.chat.completions.create
    thought = thought_of(family).get("thinking")

    async def answer(text: str, **options: Any) -> Any:
        script.answers[WEATHER] = family.answer(text, THOUGHT)
        completion = await create(model="", messages=[{"role": "user", "content": WEATHER}], **options)
        assert completion.choices[0].message.to_dict().get("reasoning") == thought
        return completion.choices[0]

    for text, choice in ((call, "required"), (body, {"type": "function", "function": {"name": name}})):
        made = await answer(text, tools=TOOLS, tool_choice=choice)
        [made_call] = made.message.tool_calls
        assert (made_call.function.name, json.loads(made_call.function.arguments)) == (name, arguments)
        assert not made.message.content
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    assert (await answer(body, response_format=schema)).message.content == body


@each_with_thoughts
async def test_a_long_thought_is_closed(family: Family, script: FamilyScript, client: Client) -> None:
    opening = family.open_thought
    script.answers[QUESTION] = opening + THOUGHT + CONTENT + family.ends[0]
    budget = len(family.ids_of(opening + THOUGHT))
    answer = await client.say(QUESTION, params={"max_thinking_tokens": budget})
    assert answer["thinking"] == THOUGHT
    assert answer["text"] == CONTENT
    assert answer["finish_reason"] == "stop"

    short = await client.say(QUESTION, params={"max_new_tokens": budget - 1})
    assert (short["text"], short["finish_reason"]) == ("", "thinking_length")
    assert THOUGHT.startswith(short["thinking"])


@each_with_thoughts
async def test_the_switch_of_the_template_is_in_the_prompt(
    family: Family, script: FamilyScript, client: Client
) -> None:
    script.answers[QUESTION] = family.answer(CONTENT)
    for level in ("off", "low", "medium", "high"):
        async with client.post(user_input=QUESTION, params={"thinking": level}, conversation=level) as response:
            data = await response.text()
        if level in family.switch:
            assert response.status == 200
            assert family.switch[level] in script.prompts[-1]
        elif not family.switch:
            assert response.status == 422
            assert "thinking" in data
    off = "none" if "off" in family.switch else "low"
    messages = [{"role": "user", "content": QUESTION}]
    async with client.post("/v1/chat/completions", messages=messages, reasoning_effort=off) as response:
        assert response.status == 200
    assert family.switch.get("off", family.switch.get("low", "")) in script.prompts[-1]
