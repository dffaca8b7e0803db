"""OpenAI's API on the real small model."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

import openai
import pytest
import torch
from openai.types import Completion, CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionToolChoiceOptionParam,
)
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aiochatstream import ChatStream, GenerationParams
from tests.helpers import ClientOf, Server, StartServer
from tests.small_engine import SmallEngine
from tests.web.openai.helpers import OpenAIClientOf, tool

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # loops are tested without a model

QUESTION = "What is the capital of France?"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]

WEATHER = tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"enum": ["Paris", "Rome"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
)
TIME = tool("get_time")
NAMED: ChatCompletionNamedToolChoiceParam = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture
async def served(start: StartServer, small_engine: SmallEngine) -> Server:
    return await start(
        ChatStream(
            engine=small_engine,
            num_of_concurrent_executions=4,
            params=GenerationParams(max_new_tokens=64, temperature=0.0),
        )
    )


def usage_of(answer: ChatCompletion | Completion) -> CompletionUsage:
    assert answer.usage is not None
    return answer.usage


def content_of(answer: ChatCompletion) -> str:
    content = answer.choices[0].message.content
    assert content is not None
    return content


async def test_greedy_answers_equal_those_of_chat_stream_and_of_generate(
    served: Server,
    openai_of: OpenAIClientOf,
    client_of: ClientOf,
    untouched_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    client = openai_of(served)
    inputs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    length = inputs["input_ids"].shape[1]
    output = await asyncio.to_thread(untouched_model.generate, **inputs, max_new_tokens=12, do_sample=False)
    expected = tokenizer.decode(output[0, length:], skip_special_tokens=True)
    answer = await client.chat.completions.create(model="", messages=MESSAGES, max_tokens=12)
    turn = await client_of(served).say(QUESTION, params={"max_new_tokens": 12})
    assert content_of(answer) == turn["text"] == expected
    assert usage_of(answer).prompt_tokens == length
    response = await client.responses.create(model="", input=QUESTION, max_output_tokens=12)
    assert response.output_text == expected
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens > 0
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    for prompt in (text, inputs["input_ids"][0].tolist()):
        completion = await client.completions.create(model="", prompt=prompt, max_tokens=12)
        assert completion.choices[0].text == expected


async def test_logprobs_match_the_models_distribution(
    served: Server, openai_of: OpenAIClientOf, untouched_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    client = openai_of(served)
    answer = await client.chat.completions.create(
        model="", messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    tokens = logprobs.content or []
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode() == content_of(answer)
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer_ids = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(token.token)[0]) for token in tokens]
    with torch.inference_mode():
        scores = untouched_model(torch.tensor([ids + answer_ids])).logits[0].log_softmax(-1)
    rows = scores[len(ids) - 1 : -1]
    for token, token_id, row in zip(tokens, answer_ids, rows, strict=True):
        assert math.isclose(token.logprob, row[token_id], abs_tol=1e-3)
        best = row.topk(2).values.tolist()
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(best, abs=1e-3)


async def test_logprobs_of_completions_have_text_offsets(served: Server, openai_of: OpenAIClientOf) -> None:
    create = openai_of(served).completions.create
    answer = await create(model="", prompt="One two three", max_tokens=3, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    tokens, values, tops = logprobs.tokens or [], logprobs.token_logprobs or [], logprobs.top_logprobs or []
    assert "".join(tokens) == answer.choices[0].text
    assert logprobs.text_offset == [len("".join(tokens[:at])) for at in range(3)]
    assert all(value in top.values() for value, top in zip(values, tops, strict=True))


@pytest.mark.parametrize("tools", [[], [TIME]], ids=["", "with tools"])
async def test_continue_final_message_continues_the_last_message(
    served: Server, openai_of: OpenAIClientOf, tokenizer: PreTrainedTokenizerBase, tools: list[Any]
) -> None:
    create = openai_of(served).chat.completions.create
    whole = await create(model="", messages=MESSAGES, tools=tools, max_tokens=12)
    beginning = content_of(whole).partition(" capital")[0]
    messages: list[ChatCompletionMessageParam] = [*MESSAGES, {"role": "assistant", "content": beginning}]
    continuation = await create(
        model="", messages=messages, tools=tools, max_tokens=9, extra_body={"continue_final_message": True}
    )
    assert content_of(continuation)
    assert content_of(whole).startswith(beginning + content_of(continuation))
    tokens = len(tokenizer(beginning)["input_ids"])
    assert usage_of(continuation).prompt_tokens == usage_of(whole).prompt_tokens + tokens
    new_message = await create(model="", messages=messages, tools=tools, max_tokens=9)
    assert usage_of(new_message).prompt_tokens > usage_of(continuation).prompt_tokens


async def test_seed_stop_and_ignore_eos(served: Server, openai_of: OpenAIClientOf) -> None:
    create = openai_of(served).chat.completions.create
    first, again, both = await asyncio.gather(
        *(create(model="", messages=MESSAGES, temperature=1.5, max_tokens=6, seed=7, n=n) for n in (1, 1, 2))
    )
    assert first.choices[0].message == again.choices[0].message == both.choices[0].message
    assert both.choices[1].message != both.choices[0].message
    stopped = await create(model="", messages=MESSAGES, stop=[" of"], max_tokens=12)
    assert (content_of(stopped), stopped.choices[0].finish_reason) == ("The capital", "stop")
    # vLLM's benchmark requests an exact number of tokens in this way
    exact = await create(model="", messages=MESSAGES, max_tokens=12, extra_body={"ignore_eos": True})
    assert (usage_of(exact).completion_tokens, exact.choices[0].finish_reason) == (12, "length")


async def test_invalid_prompts_are_refused_before_generation(served: Server, openai_of: OpenAIClientOf) -> None:
    create = openai_of(served).completions.create
    for words in (3000, 100_000):
        with pytest.raises(openai.BadRequestError) as refused:
            await create(model="", prompt=" word" * words)
        assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="at least one token"):
        await create(model="", prompt="")
    with pytest.raises(openai.BadRequestError, match="token id 10000000 is out of range"):
        await create(model="", prompt=[10_000_000])
    with pytest.raises(openai.BadRequestError, match="logit_bias: token id 10000000 is out of range"):
        await create(model="", prompt="x", logit_bias={"10000000": 1})
    assert served.idle


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=8)
    tags: list[str] = Field(max_length=2)
    size: int = Field(ge=0, le=99)


async def test_complete_answers_conform_to_their_schema(served: Server, openai_of: OpenAIClientOf) -> None:
    schema = City.model_json_schema()
    schema["properties"]["tags"]["items"]["maxLength"] = 6
    client = openai_of(served)
    complete = 0
    for seed in (0, 4):
        answer = await client.chat.completions.create(
            model="",
            messages=MESSAGES,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": schema, "strict": True},
            },
            n=4,
            seed=seed,
            temperature=0.8,
            max_tokens=48,
        )
        for choice in answer.choices:
            if choice.finish_reason == "stop":
                City.model_validate_json(choice.message.content or "", strict=True)
                complete += 1
    assert complete >= 4
    digit = await client.responses.create(
        model="",
        input="One digit.",
        text={
            "format": {
                "type": "json_schema",
                "name": "size",
                "schema": {"type": "integer", "minimum": 0, "maximum": 9},
            }
        },
    )
    assert digit.output_text in set("0123456789")


async def test_completions_conform_to_their_form(served: Server, openai_of: OpenAIClientOf) -> None:
    create = openai_of(served).completions.create
    for outputs, pattern in (({"choice": ["北京", "Paris"]}, "北京|Paris"), ({"regex": "[0-9]{3}"}, "[0-9]{3}")):
        answer = await create(model="", prompt="The capital is", extra_body={"structured_outputs": outputs})
        assert (answer.choices[0].finish_reason, re.fullmatch(pattern, answer.choices[0].text) is None) == (
            "stop",
            False,
        )
    schema = {"type": "json_schema", "json_schema": {"name": "digit", "schema": {"enum": [7, 8]}}}
    answer = await create(model="", prompt="A digit:", extra_body={"response_format": schema})
    assert answer.choices[0].text in ("7", "8")


async def test_an_invalid_schema_is_a_400(served: Server, openai_of: OpenAIClientOf) -> None:
    create = openai_of(served).chat.completions.create
    schema: dict[str, object] = {"type": "no such type"}
    with pytest.raises(openai.BadRequestError) as refused:
        await create(
            model="",
            messages=MESSAGES,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
    assert refused.value.param == "response_format"
    choices: list[ChatCompletionToolChoiceOptionParam] = ["required", NAMED]
    for choice in choices:
        with pytest.raises(openai.BadRequestError) as refused:
            await create(model="", messages=MESSAGES, tools=[tool("get_weather", schema)], tool_choice=choice)
        assert refused.value.param == "tools"
    assert served.idle


async def test_a_named_call_and_its_result(served: Server, openai_of: OpenAIClientOf) -> None:
    create = openai_of(served).chat.completions.create
    answer = await create(model="", messages=MESSAGES, tools=[WEATHER, TIME], tool_choice=NAMED)
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert (call.function.name, answer.choices[0].finish_reason) == ("get_weather", "stop")  # as with OpenAI
    assert answer.choices[0].message.content is None
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Paris", "Rome")
    assert 1 <= arguments["days"] <= 9
    message: Any = answer.choices[0].message
    result: ChatCompletionMessageParam = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 22 degrees"}
    following = await create(model="", messages=[*MESSAGES, message, result], tools=[WEATHER], max_tokens=8)
    assert usage_of(following).prompt_tokens > usage_of(answer).prompt_tokens

    stream = await create(model="", messages=MESSAGES, tools=[WEATHER, TIME], tool_choice=NAMED, stream=True)
    deltas = [delta async for chunk in stream for delta in chunk.choices[0].delta.tool_calls or ()]
    functions = [delta.function for delta in deltas if delta.function is not None]
    assert json.loads("".join(function.arguments or "" for function in functions)) == arguments
    assert [function.name for function in functions] == ["get_weather", *[None] * (len(deltas) - 1)]


async def test_a_required_call(served: Server, openai_of: OpenAIClientOf) -> None:
    answer = await openai_of(served).chat.completions.create(
        model="", messages=MESSAGES, tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert call.function.name in ("get_weather", "get_time")
    assert answer.choices[0].finish_reason == "tool_calls"
