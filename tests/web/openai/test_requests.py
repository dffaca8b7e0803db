"""What the fields of requests do, and what is refused, where no real model is needed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel, ValidationError

from aiochatstream import ChatPrompt, ChatStream, FunctionEngine, GenerationParams, runtime
from aiochatstream.prompts.presets.base_model import ChatPromptCyberAgentOpenCalm
from aiochatstream.runtime.engine_runtime import PROMPT_THREADS
from aiochatstream.web.openai.chat import told
from aiochatstream.web.openai.chat_request import ChatCompletionRequest
from aiochatstream.web.openai.completion_request import CompletionRequest
from aiochatstream.web.openai.response_request import ResponseRequest
from tests.engines.tokenizers import BYTE_FALLBACK
from tests.engines.transformers.tiny_models import BYTES, tiny
from tests.helpers import PATIENCE, echo, until

HI = [{"role": "user", "content": "one two three"}]
FORMED: dict[str, Any] = {"model": "", "messages": HI, "response_format": {"type": "json_object"}}
TOOL = {"type": "function", "function": {"name": "f"}}
SAID = [*HI, {"role": "assistant", "content": "four"}]


def plain(tokenizer: Any, max_new_tokens: int = 1) -> ChatStream:
    """Return a ChatStream of a small model whose prompt is the text itself."""
    params = GenerationParams(max_new_tokens=max_new_tokens, temperature=0.0)
    return ChatStream(model=tiny(), tokenizer=tokenizer, chat_prompt_clazz=ChatPromptCyberAgentOpenCalm, params=params)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


class Hearing:
    """An engine that remembers what it was told, and with which parameters."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.messages: list[list[dict[str, str]]] = []
        self.params: list[GenerationParams] = []

    def __call__(self, messages: list[dict[str, str]], params: GenerationParams) -> Iterator[str]:
        self.messages.append(messages)
        self.params.append(params)
        yield from self.texts


class FormFollower(FunctionEngine):
    """Takes constraints, and trusts its function to follow them."""

    def check(self, params: GenerationParams) -> None:
        pass


class SlowToCheck(FunctionEngine):
    """Takes constraints, but takes its time until ``decided``."""

    def __init__(self) -> None:
        super().__init__(echo)
        self.begun, self.decided = threading.Event(), threading.Event()
        self.checked = 0

    def check(self, params: GenerationParams) -> None:
        if params.constraint is not None:
            self.checked += 1
            self.begun.set()
            self.decided.wait(PATIENCE)


MESSAGES_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}, "function_call"),
    ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "audio"),
    ({"role": "user", "content": "x", "tool_calls": [CALL]}, "tool_calls"),
    ({"role": "function", "content": "x", "name": "f"}, "role"),
    ({"role": "user", "content": None}, "content"),
    ({"role": "tool", "content": None, "tool_call_id": "1"}, "content"),
]


async def test_of_a_message_too_nothing_is_dropped_that_would_change_the_answer(start: Any, openai_of: Any) -> None:
    server = await start(ChatStream(engine=echo))
    client = openai_of(server)
    for message, field in MESSAGES_REFUSED:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="", messages=[*HI, message, *HI])
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
def test_of_long_lists_only_the_first_faults_are_gathered(schema: type[BaseModel], body: dict[str, Any]) -> None:
    """All of them, of a body of the size that is allowed, would hold the event loop for seconds."""
    with pytest.raises(ValidationError) as refused:
        schema.model_validate_json(json.dumps(body))
    assert refused.value.error_count() < 50


async def test_a_refusal_is_what_the_model_has_said(start: Any, openai_of: Any) -> None:
    engine = Hearing("ok")
    refusal = {"role": "assistant", "content": None, "refusal": "I cannot.", "function_call": None, "audio": None}
    await openai_of(await start(ChatStream(engine=engine))).chat.completions.create(
        model="", messages=[*HI, refusal, *HI]
    )
    assert engine.messages == [[*HI, {"role": "assistant", "content": "I cannot."}, *HI]]


@pytest.mark.parametrize("empty", [{"content": None}, {}])
async def test_an_assistants_message_may_be_empty(start: Any, openai_of: Any, empty: dict[str, Any]) -> None:
    engine = Hearing("ok")
    create = openai_of(await start(ChatStream(engine=engine))).chat.completions.create
    await create(model="", messages=[*HI, {"role": "assistant", **empty}, *HI])
    assert engine.messages == [[*HI, {"role": "assistant", "content": ""}, *HI]]


async def test_a_message_to_be_continued_is_the_open_answer(start: Any, openai_of: Any) -> None:
    engine = Hearing(" four")
    create = openai_of(await start(ChatStream(engine=engine))).chat.completions.create
    messages = [{"role": "system", "content": "Count."}, *HI, {"role": "assistant", "content": "three"}]
    for more in ({}, {"add_generation_prompt": False}):
        answer = await create(model="", messages=messages, extra_body={"continue_final_message": True, **more})
        assert answer.choices[0].message.content == " four"
    assert engine.messages == [messages, messages]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "messages": [*HI, {"role": "assistant", "tool_calls": [CALL]}]}, None),
        ({"continue_final_message": True, "messages": SAID, "response_format": {"type": "json_object"}}, None),
        ({"continue_final_message": True, "messages": SAID, "tools": [TOOL], "tool_choice": "required"}, None),
        ({"continue_final_message": True, "messages": SAID, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": SAID, "add_generation_prompt": False}, "add_generation_prompt"),
        ({"messages": SAID, "echo": True}, "echo"),
    ],
)
async def test_what_cannot_be_continued_is_refused(
    start: Any, openai_of: Any, asked: dict[str, Any], field: str | None
) -> None:
    create = openai_of(await start(ChatStream(engine=FormFollower(echo)))).chat.completions.create
    with pytest.raises(openai.BadRequestError) as refused:
        await create(model="", messages=HI, extra_body=asked)
    assert refused.value.param == (field or "continue_final_message")


async def test_a_byte_order_mark_before_the_body_is_ignored(start: Any, client_of: Any) -> None:
    server = await start(ChatStream(engine=echo))
    session = client_of(server).session
    for path, body in (("/v1/completions", {"prompt": "x"}), ("/chat_stream", {"user_input": "x"})):
        data = json.dumps(body).encode("utf-8-sig")
        async with session.post(server.url + path, data=data, headers={"Content-Type": "application/json"}) as response:
            assert response.status == 200


NOTHING_ASKED: dict[str, dict[str, Any]] = {
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
"""Fields that well-known clients send unasked."""


@pytest.mark.parametrize("path", NOTHING_ASKED)
async def test_what_clients_send_by_default_is_no_fault(start: Any, client_of: Any, path: str) -> None:
    client = client_of(await start(ChatStream(engine=echo)))
    async with client.post(path, **NOTHING_ASKED[path]) as response:
        assert response.status == 200, await response.text()


async def test_top_logprobs_of_nothing_need_no_logprobs(start: Any, openai_of: Any) -> None:
    create = openai_of(await start(ChatStream(engine=echo))).chat.completions.create
    answer = await create(model="", messages=HI, logprobs=False, top_logprobs=0)
    assert answer.choices[0].logprobs is None


async def test_top_p_may_be_zero(start: Any, openai_of: Any) -> None:
    engine = Hearing("ok")
    await openai_of(await start(ChatStream(engine=engine))).chat.completions.create(model="", messages=HI, top_p=0)
    assert engine.params[0].top_p == 0


ASSISTANT = {"role": "assistant", "content": "Hi"}


@pytest.mark.parametrize(
    ("schema", "body", "empty"),
    [
        *[
            (ChatCompletionRequest, {"messages": HI}, empty)
            for empty in (
                {"stop": []},
                {"logit_bias": {}},
                {"tools": []},
                {"tool_choice": {}},
                {"response_format": {}},
                {"stream_options": {}},
                {"modalities": []},
                {"functions": []},
                {"function_call": {}},
                {"metadata": {}},
                {"audio": {}},
            )
        ],
        (CompletionRequest, {"prompt": "a"}, {"stop": [], "logit_bias": {}, "stream_options": {}}),
        (
            ResponseRequest,
            {"input": "a"},
            {"stop": [], "tools": [], "tool_choice": {}, "text": {}, "include": [], "metadata": {}, "reasoning": {}},
        ),
    ],
)
def test_an_empty_list_or_object_is_as_absent(
    schema: type[BaseModel], body: dict[str, Any], empty: dict[str, Any]
) -> None:
    absent = schema.model_validate_json(json.dumps(body))
    assert schema.model_validate_json(json.dumps(body | empty)) == absent
    assert schema.model_validate_json(json.dumps(body | dict.fromkeys(empty))) == absent


@pytest.mark.parametrize("empty", [{"tool_calls": []}, {"audio": {}}, {"function_call": {}}, {"annotations": []}])
def test_of_a_message_too_an_empty_list_or_object_is_as_absent(empty: dict[str, Any]) -> None:
    bodies = [{"messages": [*HI, ASSISTANT | more, *HI]} for more in ({}, empty, dict.fromkeys(empty))]
    told_as = [
        [told(message) for message in ChatCompletionRequest.model_validate_json(json.dumps(body)).messages]
        for body in bodies
    ]
    assert told_as[0] == told_as[1] == told_as[2] == [*HI, ASSISTANT, *HI]


async def test_content_of_no_parts_is_none(start: Any, openai_of: Any) -> None:
    engine = Hearing("ok")
    create = openai_of(await start(ChatStream(engine=engine))).chat.completions.create
    calling = {"role": "assistant", "content": [], "tool_calls": [CALL]}
    await create(model="", messages=[*HI, calling, {"role": "tool", "tool_call_id": "1", "content": "5"}], tools=[TOOL])
    with pytest.raises(openai.BadRequestError, match="content: must be a string"):
        await create(model="", messages=[{"role": "user", "content": []}])


async def test_half_a_surrogate_pair_in_the_arguments_of_a_call_is_a_bad_request(start: Any, openai_of: Any) -> None:
    create = openai_of(await start(plain(BYTE_FALLBACK))).chat.completions.create
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "\\ud83d"}'}}
    messages = [*HI, {"role": "assistant", "content": "", "tool_calls": [call]}, *HI]
    with pytest.raises(openai.BadRequestError, match="arguments of tool_calls must be JSON without unpaired surrogate"):
        await create(model="", messages=messages, tools=[TOOL])


async def test_a_seed_may_be_below_zero(start: Any, openai_of: Any) -> None:
    engine = Hearing("ok")
    client = openai_of(await start(ChatStream(engine=engine)))
    for seed in (-1, -1, -(2**63), 2**63 - 1):
        await client.chat.completions.create(model="", messages=HI, seed=seed)
    first, again, *_ = seeds = [params.seed for params in engine.params]
    assert first == again
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("stream", [False, True])
async def test_without_parallel_calls_the_first_one_counts(start: Any, openai_of: Any, stream: bool) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    create = openai_of(await start(ChatStream(engine=Hearing(call, call)))).chat.completions.create
    for parallel, count in ((True, 2), (False, 1)):
        asked = {"model": "", "messages": HI, "tools": [TOOL], "parallel_tool_calls": parallel, "stream": stream}
        answer = await create(**asked)
        if stream:
            chunks = [chunk async for chunk in answer]
            calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        else:
            calls = answer.choices[0].message.tool_calls
        assert [call.function.arguments for call in calls] == ['{"x": 1}'] * count


async def test_no_replacement_breaks_the_form_that_was_asked_for(start: Any, openai_of: Any) -> None:
    class Lines(ChatPrompt):
        def get_replacement_when_output(self) -> list[tuple[str, str]]:
            return [("<NL>", "\n")]

    engine = FormFollower(Hearing('{"a": "b<NL>c"}'))
    create = openai_of(await start(ChatStream(engine=engine, chat_prompt_clazz=Lines))).chat.completions.create
    plain = await create(model="", messages=HI)
    assert plain.choices[0].message.content == '{"a": "b\nc"}'
    formed = await create(model="", messages=HI, response_format={"type": "json_object"})
    assert json.loads(formed.choices[0].message.content) == {"a": "b<NL>c"}


async def test_too_many_answers_are_the_fault_of_n_or_of_the_prompts(start: Any, openai_of: Any) -> None:
    create = openai_of(await start(ChatStream(engine=echo))).completions.create
    for asked, param in (({"prompt": ["a"] * 3, "n": 86}, "n"), ({"prompt": ["a"] * 257}, "prompt")):
        with pytest.raises(openai.BadRequestError, match="1 to 256") as refused:
            await create(model="", **asked)
        assert refused.value.param == param


async def test_a_completion_goes_on_in_the_middle_of_a_text(start: Any, openai_of: Any) -> None:
    """A tokenizer of Llama's kind drops the space before the first word of a text; this is not the first."""
    space, a = BYTE_FALLBACK.convert_tokens_to_ids(["▁", "a"])
    server = await start(plain(BYTE_FALLBACK))
    for token, text in ((space, " "), (a, "a")):
        answer = await openai_of(server).completions.create(model="", prompt="ab", logit_bias={str(token): 100})
        assert answer.choices[0].text == text


async def test_an_answer_of_lone_bytes_is_told_and_its_logprobs_agree(start: Any, openai_of: Any) -> None:
    """But for the last byte, which is half a character where the answer is cut off."""
    byte = BYTE_FALLBACK.convert_tokens_to_ids("<0xE6>")
    create = openai_of(await start(plain(BYTE_FALLBACK, max_new_tokens=41))).completions.create
    for prompt in ("ab \ufffd", [BYTE_FALLBACK.convert_tokens_to_ids("<0xE6>")]):
        answer = await create(model="", prompt=prompt, logit_bias={str(byte): 100}, logprobs=0)
        choice = answer.choices[0]
        assert choice.text == "\ufffd" * 40
        assert choice.logprobs.tokens == ["bytes:\\xe6"] * 41
        assert choice.logprobs.text_offset == list(range(41))


async def test_an_answer_that_ends_at_once_streams_no_empty_logprobs(start: Any, openai_of: Any) -> None:
    server = await start(plain(BYTES, max_new_tokens=256))
    end = {str(BYTES.eos_token_id): 100}
    client = openai_of(server, _strict_response_validation=False)
    texts = await client.completions.create(model="", prompt="ab", logprobs=1, logit_bias=end, stream=True)
    chunks = [chunk.choices[0] async for chunk in texts]
    assert [(chunk.text, chunk.logprobs, chunk.finish_reason) for chunk in chunks] == [("", None, "stop")]
    chat = await client.chat.completions.create(model="", messages=HI, logprobs=True, logit_bias=end, stream=True)
    assert [chunk.choices[0].logprobs async for chunk in chat] == [None, None]


async def test_constraints_that_take_time_to_check_hold_no_place_and_no_prompt_thread(
    start: Any, openai_of: Any
) -> None:
    engine = SlowToCheck()
    server = await start(ChatStream(engine=engine, num_of_concurrent_executions=1, max_queue_size=1))
    create = openai_of(server).chat.completions.create
    constrained = [asyncio.create_task(create(**FORMED)) for _ in range(PROMPT_THREADS + 1)]
    await until(lambda: engine.begun.is_set() and server.chat_stream._slow_checks == len(constrained))
    for _ in range(2):
        assert (await create(model="", messages=HI)).choices[0].message.content == "one two three "
    assert not any(task.done() for task in constrained)
    engine.decided.set()
    outcomes = await asyncio.gather(*constrained, return_exceptions=True)
    assert all(getattr(outcome, "status_code", 503) == 503 or outcome.choices for outcome in outcomes)
    assert (await create(**FORMED)).choices
    assert server.idle


async def test_clients_that_leave_while_their_constraint_waits_for_its_check_cost_nothing(
    start: Any, openai_of: Any
) -> None:
    engine = SlowToCheck()
    server = await start(ChatStream(engine=engine))
    create = openai_of(server).chat.completions.create
    leaving = [asyncio.create_task(create(**FORMED)) for _ in range(7)]
    await until(lambda: engine.begun.is_set() and server.chat_stream._slow_checks == len(leaving))
    for task in leaving:
        task.cancel()
    await until(lambda: server.chat_stream._slow_checks == 0)
    engine.decided.set()
    assert (await create(**FORMED)).choices
    assert engine.checked == 2, "a check took place for a client that had left"
    assert server.idle


async def test_too_many_slow_checks_are_refused_and_they_alone(
    start: Any, openai_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "MAX_SLOW_CHECKS", 2)
    engine = SlowToCheck()
    server = await start(ChatStream(engine=engine))
    create = openai_of(server).chat.completions.create
    checking = [asyncio.create_task(create(**FORMED)) for _ in range(2)]
    await until(lambda: server.chat_stream._slow_checks == 2)
    with pytest.raises(openai.InternalServerError, match="schemas are being checked") as refused:
        await create(**FORMED)
    assert refused.value.status_code == 503
    assert (await create(model="", messages=HI)).choices
    engine.decided.set()
    await asyncio.gather(*checking)
