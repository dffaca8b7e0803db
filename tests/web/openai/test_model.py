"""OpenAI's API on the real small model."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import openai
import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field

from aiochatstream import ChatStream, GenerationParams
from tests.helpers import Server

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # what loops have to do with it is tested without a model

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture
async def served(start: Any, model: Any, tokenizer: Any) -> Server:
    server: Server = await start(
        ChatStream(
            model=model,
            tokenizer=tokenizer,
            num_of_concurrent_executions=4,
            params=GenerationParams(max_new_tokens=64, temperature=0.0),
        )
    )
    return server


async def test_greedy_answers_are_those_of_chat_stream_and_of_generate(
    served: Server, openai_of: Any, client_of: Any, untouched_model: Any, tokenizer: Any
) -> None:
    client = openai_of(served)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    length = ids["input_ids"].shape[1]
    made = await asyncio.to_thread(untouched_model.generate, **ids, max_new_tokens=12, do_sample=False)
    expected = tokenizer.decode(made[0, length:], skip_special_tokens=True)
    answer = await client.chat.completions.create(model="", messages=QUESTION, max_tokens=12)
    said = await client_of(served).say(QUESTION[0]["content"], params={"max_new_tokens": 12})
    assert answer.choices[0].message.content == said["text"] == expected
    assert answer.usage.prompt_tokens == length
    again = await client.responses.create(model="", input=QUESTION[0]["content"], max_output_tokens=12)
    assert again.output_text == expected
    assert again.usage.input_tokens_details.cached_tokens > 0
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    for given in (prompt, ids["input_ids"][0].tolist()):
        text = await client.completions.create(model="", prompt=given, max_tokens=12)
        assert text.choices[0].text == expected


async def test_logprobs_are_those_of_the_models_own_distribution(
    served: Server, openai_of: Any, untouched_model: Any, tokenizer: Any
) -> None:
    client = openai_of(served)
    answer = await client.chat.completions.create(
        model="", messages=QUESTION, max_tokens=4, logprobs=True, top_logprobs=2
    )
    told = answer.choices[0].logprobs.content
    assert b"".join(bytes(one.bytes) for one in told).decode() == answer.choices[0].message.content
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)["input_ids"]
    ids += [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(one.token)[0]) for one in told]
    with torch.inference_mode():
        scores = untouched_model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for place, one in enumerate(told):
        row = scores[len(ids) - len(told) - 1 + place]
        assert math.isclose(one.logprob, row[ids[len(ids) - len(told) + place]], abs_tol=1e-3)
        best = row.topk(2).values.tolist()
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(best, abs=1e-3)
    text = await client.completions.create(model="", prompt="One two three", max_tokens=3, logprobs=1)
    logprobs = text.choices[0].logprobs
    assert "".join(logprobs.tokens) == text.choices[0].text
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:at])) for at in range(3)]
    assert all(logprobs.token_logprobs[at] in top.values() for at, top in enumerate(logprobs.top_logprobs))


@pytest.mark.parametrize("tools", [[], [TIME]], ids=["", "with tools"])
async def test_an_answer_goes_on_with_the_last_message_if_that_is_asked_for(
    served: Server, openai_of: Any, tokenizer: Any, tools: list[Any]
) -> None:
    client = openai_of(served)
    whole = await client.chat.completions.create(model="", messages=QUESTION, tools=tools, max_tokens=12)
    text = whole.choices[0].message.content
    begun = text[: text.index(" capital")]
    messages = [*QUESTION, {"role": "assistant", "content": begun}]
    asked = {"model": "", "messages": messages, "tools": tools, "max_tokens": 9}
    going_on = await client.chat.completions.create(**asked, extra_body={"continue_final_message": True})
    assert text.startswith(begun + going_on.choices[0].message.content)
    assert going_on.usage.prompt_tokens == whole.usage.prompt_tokens + len(tokenizer(begun)["input_ids"])
    another = await client.chat.completions.create(**asked)
    assert another.usage.prompt_tokens > going_on.usage.prompt_tokens


async def test_seed_stop_and_ignore_eos_do_what_they_say(served: Server, openai_of: Any) -> None:
    create = openai_of(served).chat.completions.create
    asked = {"model": "", "messages": QUESTION, "temperature": 1.5, "max_tokens": 6}
    first, again, both = await asyncio.gather(
        create(seed=7, **asked), create(seed=7, **asked), create(seed=7, n=2, **asked)
    )
    assert first.choices[0].message == again.choices[0].message == both.choices[0].message
    assert both.choices[1].message != both.choices[0].message
    stopped = await create(model="", messages=QUESTION, stop=[" of"], max_tokens=12)
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("The capital", "stop")
    # as vLLM's benchmark asks for exactly so many tokens
    exact = await create(model="", messages=QUESTION, max_tokens=12, extra_body={"ignore_eos": True})
    assert (exact.usage.completion_tokens, exact.choices[0].finish_reason) == (12, "length")


async def test_what_does_not_fit_is_refused_before_it_is_begun(served: Server, openai_of: Any) -> None:
    client = openai_of(served)
    for words, asked in ((3000, {}), (100_000, {}), (2020, {"max_tokens": 60})):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="", prompt=" word" * words, **asked)
        assert refused.value.code == "context_length_exceeded"
    for prompt, says in (
        ("", "at least one token"),
        ([10_000_000], "token id 10000000 is out of range"),
    ):
        with pytest.raises(openai.BadRequestError, match=says):
            await client.completions.create(model="", prompt=prompt)
    with pytest.raises(openai.BadRequestError, match="logit_bias: token id 10000000 is out of range"):
        await client.completions.create(model="", prompt="x", logit_bias={"10000000": 1})
    room = await client.completions.create(model="", prompt=" a" * 2046, temperature=0, extra_body={"ignore_eos": True})
    assert room.usage.completion_tokens == 2  # what the prompt leaves
    assert served.idle


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=8)
    tags: list[str] = Field(max_length=2)
    size: int = Field(ge=0, le=99)


async def test_every_answer_that_ends_by_itself_follows_its_schema(served: Server, openai_of: Any) -> None:
    schema = City.model_json_schema()
    schema["properties"]["tags"]["items"]["maxLength"] = 6
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    client = openai_of(served)
    ended = 0
    for seed in range(0, 20, 4):
        answer = await client.chat.completions.create(
            model="", messages=QUESTION, response_format=form, n=4, seed=seed, temperature=0.8, max_tokens=48
        )
        for choice in answer.choices:
            if choice.finish_reason == "stop":
                City.model_validate_json(choice.message.content, strict=True)
                ended += 1
    assert ended >= 10
    form = {"type": "json_schema", "name": "size", "schema": {"type": "integer", "minimum": 0, "maximum": 9}}
    digit = await client.responses.create(model="", input="One digit.", text={"format": form})
    assert digit.output_text in set("0123456789")


async def test_a_schema_that_cannot_be_followed_is_a_400(served: Server, openai_of: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
    client = openai_of(served)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="", messages=QUESTION, response_format=form)
    assert refused.value.param == "response_format"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "no such type"}}}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="", messages=QUESTION, tools=[tool], tool_choice=choice)
        assert refused.value.param == "tools"
    assert served.idle


async def test_a_forced_call_is_made_and_its_result_goes_back(served: Server, openai_of: Any) -> None:
    create = openai_of(served).chat.completions.create
    asked = {"model": "", "messages": QUESTION, "tools": [WEATHER, TIME]}
    forced = {"type": "function", "function": {"name": "get_weather"}}
    answer = await create(**asked, tool_choice=forced)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, answer.choices[0].finish_reason) == ("get_weather", "stop")  # as with OpenAI
    assert answer.choices[0].message.content is None
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Paris", "Rome")
    assert 1 <= arguments["days"] <= 9
    pieces = [chunk async for chunk in await create(**asked, tool_choice=forced, stream=True)]
    deltas = [call for chunk in pieces for call in chunk.choices[0].delta.tool_calls or ()]
    assert json.loads("".join(delta.function.arguments for delta in deltas)) == arguments
    assert [delta.function.name for delta in deltas] == ["get_weather", *[None] * (len(deltas) - 1)]
    required = await create(**asked, tool_choice="required", parallel_tool_calls=False)
    (one,) = required.choices[0].message.tool_calls
    assert one.function.name in ("get_weather", "get_time")
    assert required.choices[0].finish_reason == "tool_calls"
    result = [
        *QUESTION,
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 22 degrees"},
    ]
    told = await create(model="", messages=result, tools=[WEATHER], max_tokens=8)
    assert told.usage.prompt_tokens > answer.usage.prompt_tokens
