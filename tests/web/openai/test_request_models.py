"""Request fields: parameters, defaults of common clients, invalid and unsupported values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import openai
import pytest
from pydantic import BaseModel, ValidationError

from aiochatstream import ChatStream, Constraint, GenerationParams
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.params import ThinkingLevel
from aiochatstream.web.openai.chat import template_message
from aiochatstream.web.openai.chat_request import ChatCompletionRequest
from aiochatstream.web.openai.completion_request import CompletionRequest
from aiochatstream.web.openai.response_request import ResponseRequest
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import ClientOf, StartServer, echo
from tests.prompts.templates import QWEN, with_template
from tests.web.openai.helpers import HI, ConstrainedEngine, OpenAIClientOf, SpyEngine

TOOL = {"type": "function", "function": {"name": "f"}}


DIALOGUE = [*HI, {"role": "assistant", "content": "four"}]


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


MESSAGES_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}, "function_call"),
    ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "audio"),
    ({"role": "user", "content": "x", "tool_calls": [CALL]}, "tool_calls"),
    ({"role": "function", "content": "x", "name": "f"}, "role"),
    ({"role": "user", "content": None}, "content"),
    ({"role": "tool", "content": None, "tool_call_id": "1"}, "content"),
]


async def test_parameters_reach_the_engine_by_its_own_names(start: StartServer, openai_of: OpenAIClientOf) -> None:
    calls: list[GenerationParams] = []

    def engine(messages: Any, params: GenerationParams) -> Iterator[str]:
        calls.append(params)
        yield "Hello"

    client = openai_of(await start(ChatStream(engine=engine, params=GenerationParams(max_new_tokens=50))))
    extensions = {
        "top_k": -1,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "ignore_eos": True,
        "no_such_field": 1,
        "store": True,
    }
    await client.chat.completions.create(
        model="",
        messages=HI,
        max_completion_tokens=7,
        max_tokens=9,
        temperature=0.5,
        top_p=0.6,
        seed=11,
        stop="x",
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"5": 3},
        user="anna",
        extra_body=extensions,
    )
    expected = GenerationParams(
        max_new_tokens=7,
        temperature=0.5,
        top_p=0.6,
        top_k=0,
        min_p=0.1,
        seed=11,
        stop=("x",),
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.2,
        logit_bias={5: 3},
        ignore_eos=True,
    )
    assert calls == [expected]
    await client.chat.completions.create(model="", messages=HI, max_tokens=9, stop=["x", "y"])
    assert (calls[1].max_new_tokens, calls[1].stop) == (9, ("x", "y"))


async def test_unsupported_fields_of_messages_are_refused(start: StartServer, openai_of: OpenAIClientOf) -> None:
    server = await start(ChatStream(engine=echo))
    client = openai_of(server)
    for message, field in MESSAGES_REFUSED:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="", messages=[*HI, cast(Any, message), *HI])
        assert refused.value.param == f"messages.1.{field}"
    assert server.idle


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (ChatCompletionRequest, {"messages": [{}] * 10_000}),
        (ChatCompletionRequest, {"messages": HI * 10_000}),
        (ChatCompletionRequest, {"messages": [{"role": "assistant", "tool_calls": [{}] * 10_000}]}),
        (ChatCompletionRequest, {"messages": HI, "logit_bias": {f"x{number}": 1 for number in range(10_000)}}),
        (ChatCompletionRequest, {"messages": HI, "stop": [1] * 10_000}),
        (ResponseRequest, {"input": [{}] * 10_000}),
        (ResponseRequest, {"input": HI * 10_000}),
        (CompletionRequest, {"prompt": [{}] * 10_000}),
        (CompletionRequest, {"prompt": [[{}] * 10_000]}),
    ],
)
def test_validation_of_long_lists_stops_early(schema: type[BaseModel], body: dict[str, Any]) -> None:
    """To collect all errors of a body of the allowed size would block the event loop for seconds."""
    with pytest.raises(ValidationError) as refused:
        schema.model_validate_json(json.dumps(body))
    assert refused.value.error_count() < 50


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "messages": [*HI, {"role": "assistant", "tool_calls": [CALL]}]}, None),
        ({"continue_final_message": True, "messages": DIALOGUE, "response_format": {"type": "json_object"}}, None),
        ({"continue_final_message": True, "messages": DIALOGUE, "tools": [TOOL], "tool_choice": "required"}, None),
        (
            {"continue_final_message": True, "messages": DIALOGUE, "add_generation_prompt": True},
            "add_generation_prompt",
        ),
        ({"messages": DIALOGUE, "add_generation_prompt": False}, "add_generation_prompt"),
        ({"messages": DIALOGUE, "echo": True}, "echo"),
    ],
)
async def test_invalid_continuations_are_refused(
    start: StartServer, openai_of: OpenAIClientOf, fields: dict[str, Any], param: str | None
) -> None:
    create = openai_of(await start(ChatStream(engine=ConstrainedEngine(echo)))).chat.completions.create
    with pytest.raises(openai.BadRequestError) as refused:
        await create(model="", messages=HI, extra_body=fields)
    assert refused.value.param == (param or "continue_final_message")


async def test_a_byte_order_mark_before_the_body_is_ignored(start: StartServer, client_of: ClientOf) -> None:
    server = await start(ChatStream(engine=echo))
    session = client_of(server).session
    for path, body in (("/v1/completions", {"prompt": "x"}), ("/chat_stream", {"user_input": "x"})):
        data = json.dumps(body).encode("utf-8-sig")
        async with session.post(server.url + path, data=data, headers={"Content-Type": "application/json"}) as response:
            assert response.status == 200


DEFAULT_FIELDS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}], "type": "text"},
            {
                "role": "assistant",
                "content": "yes",
                "refusal": None,
                "annotations": [],
                "audio": None,
                "tool_calls": None,
            },
            *HI,
        ],
        **dict.fromkeys(("seed", "n", "functions", "function_call", "web_search_options", "reasoning_effort", "user")),
        "modalities": ["text"],
        "prediction": None,
        "metadata": {},
        "store": False,
        "verbosity": "medium",
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "logprobs": False,
        "top_logprobs": 0,
        "stop": [],
        "logit_bias": {},
        "service_tier": "auto",
        "prompt_cache_key": "x",
        "safety_identifier": "y",
        "echo": False,
        "add_generation_prompt": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "/v1/completions": {
        "prompt": "x",
        "suffix": None,
        "best_of": 1,
        "n": 1,
        "echo": False,
        "logprobs": None,
        "logit_bias": {},
        "stop": None,
        "repetition_penalty": 1.0,
        "seed": -1,
        "stream_options": None,
        "user": "x",
        "min_tokens": 0,
    },
    "/v1/responses": {
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}],
        "include": [],
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "store": True,
        "reasoning": {"effort": None, "summary": None},
        "truncation": "disabled",
        "previous_response_id": None,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "stream_options": {"include_obfuscation": False},
    },
}
"""Fields that common clients send by default."""


@pytest.mark.parametrize("path", DEFAULT_FIELDS)
async def test_default_fields_of_common_clients_are_accepted(
    start: StartServer, client_of: ClientOf, path: str
) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    async with client.post(path, **DEFAULT_FIELDS[path]) as response:
        assert response.status == 200, await response.text()


async def test_top_logprobs_0_needs_no_logprobs(start: StartServer, openai_of: OpenAIClientOf) -> None:
    create = openai_of(await start(ChatStream(engine=echo))).chat.completions.create
    answer = await create(model="", messages=HI, logprobs=False, top_logprobs=0)
    assert answer.choices[0].logprobs is None


async def test_top_p_may_be_zero(start: StartServer, openai_of: OpenAIClientOf) -> None:
    engine = SpyEngine("ok")
    await openai_of(await start(ChatStream(engine=engine))).chat.completions.create(model="", messages=HI, top_p=0)
    assert engine.params[0].top_p == 0


ASSISTANT = {"role": "assistant", "content": "Hi"}

EMPTY_FIELDS: list[tuple[type[BaseModel], dict[str, Any], dict[str, Any]]] = [
    (ChatCompletionRequest, {"messages": HI}, {"stop": []}),
    (ChatCompletionRequest, {"messages": HI}, {"logit_bias": {}}),
    (ChatCompletionRequest, {"messages": HI}, {"tools": []}),
    (ChatCompletionRequest, {"messages": HI}, {"tool_choice": {}}),
    (ChatCompletionRequest, {"messages": HI}, {"response_format": {}}),
    (ChatCompletionRequest, {"messages": HI}, {"stream_options": {}}),
    (ChatCompletionRequest, {"messages": HI}, {"modalities": []}),
    (ChatCompletionRequest, {"messages": HI}, {"functions": []}),
    (ChatCompletionRequest, {"messages": HI}, {"function_call": {}}),
    (ChatCompletionRequest, {"messages": HI}, {"metadata": {}}),
    (ChatCompletionRequest, {"messages": HI}, {"audio": {}}),
    (CompletionRequest, {"prompt": "a"}, {"stop": [], "logit_bias": {}, "stream_options": {}}),
    (
        ResponseRequest,
        {"input": "a"},
        {"stop": [], "tools": [], "tool_choice": {}, "text": {}, "include": [], "metadata": {}, "reasoning": {}},
    ),
]


@pytest.mark.parametrize(("schema", "body", "empty"), EMPTY_FIELDS)
def test_an_empty_list_or_object_is_treated_as_absent(
    schema: type[BaseModel], body: dict[str, Any], empty: dict[str, Any]
) -> None:
    absent = schema.model_validate_json(json.dumps(body))
    assert schema.model_validate_json(json.dumps(body | empty)) == absent
    assert schema.model_validate_json(json.dumps(body | dict.fromkeys(empty))) == absent


@pytest.mark.parametrize("empty", [{"tool_calls": []}, {"audio": {}}, {"function_call": {}}, {"annotations": []}])
def test_in_messages_an_empty_list_or_object_is_treated_as_absent(empty: dict[str, Any]) -> None:
    bodies = [{"messages": [*HI, ASSISTANT | more, *HI]} for more in ({}, empty, dict.fromkeys(empty))]
    messages = [
        [template_message(message) for message in ChatCompletionRequest.model_validate_json(json.dumps(body)).messages]
        for body in bodies
    ]
    assert messages[0] == messages[1] == messages[2] == [*HI, ASSISTANT, *HI]


async def test_a_seed_may_be_negative(start: StartServer, openai_of: OpenAIClientOf) -> None:
    engine = SpyEngine("ok")
    client = openai_of(await start(ChatStream(engine=engine)))
    for seed in (-1, -1, -(2**63), 2**63 - 1):
        await client.chat.completions.create(model="", messages=HI, seed=seed)
    first, again, *_ = seeds = [params.seed for params in engine.params]
    assert first == again
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("effort", "levels", "thinking"),
    [
        ("none", ("auto", "off", "high"), "off"),
        ("minimal", ("auto", "off", "high"), "high"),
        ("xhigh", ("auto", "low", "medium", "high"), "high"),
        ("none", ("auto", "low", "medium", "high"), "low"),
        ("medium", (), None),
        (None, ("auto", "off", "high"), None),
    ],
)
def test_an_effort_is_the_nearest_level_of_the_model(
    effort: str | None, levels: tuple[ThinkingLevel, ...], thinking: str | None
) -> None:
    chat = ChatCompletionRequest.model_validate({"messages": HI, "reasoning_effort": effort, "temperature": 1})
    reasoning = None if effort is None else {"effort": effort, "summary": "auto"}
    response = ResponseRequest.model_validate({"input": "Hello", "reasoning": reasoning, "temperature": 1})
    for request in (chat, response):
        overrides = request.overrides_for(levels)
        assert (overrides.thinking, overrides.temperature) == (thinking, 1)


async def test_an_unknown_effort_is_refused(start: StartServer, openai_of: OpenAIClientOf) -> None:
    client = openai_of(await start(ChatStream(engine=echo)))
    for field, value, name in (
        ("reasoning_effort", "huge", "reasoning_effort"),
        ("chat_template_kwargs", [1], "chat_template_kwargs"),
        ("chat_template_kwargs", {"a b": 1}, "chat_template_kwargs"),
    ):
        with pytest.raises(openai.BadRequestError, match=f"{name}: must be ") as error:
            await client.chat.completions.create(model="", messages=HI, extra_body={field: value})
        assert error.value.param == name


async def test_effort_and_variables_reach_the_template(start: StartServer, openai_of: OpenAIClientOf) -> None:
    engine = TransformersEngine(tiny(), with_template(QWEN, BYTES), optimize=False)
    client = openai_of(await start(ChatStream(engine=engine, params=GenerationParams(temperature=0))))

    async def prompt_tokens(**options: Any) -> int:
        completion = await client.chat.completions.create(model="", messages=HI, max_tokens=1, extra_body=options)
        assert completion.usage is not None
        return completion.usage.prompt_tokens

    plain = await prompt_tokens()
    closed = plain + len("<think>\n\n</think>\n\n")
    assert await prompt_tokens(reasoning_effort="high") == plain
    assert await prompt_tokens(reasoning_effort="none") == closed
    assert await prompt_tokens(chat_template_kwargs={"enable_thinking": False}) == closed
    assert await prompt_tokens(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}) == plain
    response = await client.responses.create(
        model="", input=str(HI[0]["content"]), max_output_tokens=1, reasoning={"effort": "none"}
    )
    assert response.usage is not None
    assert response.usage.input_tokens == closed
    with pytest.raises(openai.BadRequestError, match="accepts enable_thinking, language") as error:
        await prompt_tokens(chat_template_kwargs={"tools": []})
    assert error.value.param == "chat_template_kwargs.tools"


SCHEMA: dict[str, Any] = {"type": "object", "properties": {"x": {"type": "integer"}}}

FORMATS: list[tuple[dict[str, Any], Constraint | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, Constraint("json_object")),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        Constraint.json_schema(SCHEMA),
    ),
    ({"structured_outputs": {"json": SCHEMA}}, Constraint.json_schema(SCHEMA)),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Constraint.json_schema(SCHEMA)),
    ({"structured_outputs": {"json": {}}}, Constraint.json_schema({})),
    ({"structured_outputs": {"json_object": True, "regex": None}}, Constraint("json_object")),
    ({"structured_outputs": {"regex": "[0-9]+"}}, Constraint("regex", "[0-9]+")),
    ({"structured_outputs": {"choice": ["a", 'b"\n']}}, Constraint("lark", 'start: "a" | "b\\"\\n"')),
]
"""Forms of an answer in chats and completions, and their constraints."""


async def test_forms_of_an_answer_are_constraints(start: StartServer, client_of: ClientOf) -> None:
    engine = SpyEngine("ok")
    client = client_of(await start(ChatStream(engine=ConstrainedEngine(engine))))
    for path, prompt in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": HI})):
        for fields, constraint in FORMATS:
            async with client.post(path, **prompt, **fields) as response:
                assert response.status == 200, await response.text()
            assert engine.params[-1].constraint == constraint


FORMATS_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"json": "{"}, "json"),
    ({"json": "[]"}, "json"),
    ({"json_object": False}, "json_object"),
    ({"regex": ""}, "regex"),
    ({"choice": [""]}, "choice"),
    ({"choice": ["a"] * 1025}, "choice"),
    ({"regex": "a", "json_object": True}, "json"),
    ({"regex": None}, "json"),
    ({"grammar": "root ::= x"}, "grammar"),
    ({"structural_tag": "{}"}, "structural_tag"),
]


async def test_invalid_forms_of_an_answer_are_refused(start: StartServer, client_of: ClientOf) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    outputs = {"regex": "a"}
    refused: list[tuple[dict[str, Any], str]] = [
        *(({"structured_outputs": form}, f"structured_outputs.{field}") for form, field in FORMATS_REFUSED),
        ({"structured_outputs": outputs, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"structured_outputs": outputs}, "structured_outputs"),  # this engine accepts no constraints
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ]
    for path, prompt in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": HI})):
        for fields, param in refused:
            async with client.post(path, **prompt, **fields) as response:
                error = (await response.json())["error"]
            assert (response.status, error["param"]) == (400, param), error
    fields = {"messages": HI, "tools": [TOOL], "structured_outputs": outputs}
    async with client.post("/v1/chat/completions", **fields) as response:
        assert "structured_outputs: must not be combined with tools" in await response.text()
