"""Tests of other people's clients with real servers: `make test-clients`. The exit status is 1 if a test fails.

LangChain and LiteLLM talk to the small model; openai-python, LangChain, LiteLLM and the AI SDK to models that think and
call tools. The environment .venv-clients is separate, because these libraries have many dependencies. Without Node.js,
the AI SDK is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it downloads prices

import litellm
from langchain_deepseek import ChatDeepSeek
from langchain_openai import ChatOpenAI
from openai import OpenAI

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent
PORT = 8917
BASE = f"http://127.0.0.1:{PORT}/v1"
START_SECONDS = 300
QUESTION = "What is the capital of France?"
TOOL_QUESTION = "What is the weather in Paris?"
PARAMETERS: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}

SMALL_MODEL = ("-m", "aiochatstream", "serve", "--port", str(PORT), "--temperature", "0")
THINKING_MODELS = ("scripted-thoughts", "qwen3", "qwen3.5", "gpt-oss", "gemma-4", "mistral", "deepseek")
"""Models of thinking_server.py."""

Tests = dict[str, Callable[[], object]]
"""Tests by name. A test that fails raises an exception."""


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=8)
    size: int = Field(ge=0, le=99)


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """Run Python with ``arguments``, which start a server; yield the name of its model."""
    command = [str(ROOT / ".venv/bin/python"), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("The server did not start.")
            with suppress(OSError), urllib.request.urlopen(f"{BASE}/models") as response:
                yield json.load(response)["data"][0]["id"]
                return
            time.sleep(0.5)
    finally:
        process.terminate()
        process.wait()


def client_tests(model: str) -> Tests:
    """Return the tests with the small model."""
    settings: dict[str, Any] = {"base_url": BASE, "api_key": "none", "model": model, "max_retries": 0}
    chat, longer = (ChatOpenAI(**settings, max_tokens=tokens) for tokens in (12, 48))
    request: dict[str, Any] = {"model": f"openai/{model}", "api_base": BASE, "api_key": "none", "max_tokens": 12}
    request["messages"] = [{"role": "user", "content": QUESTION}]
    parameters: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}}
    parameters |= {"required": ["city"], "additionalProperties": False}
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}

    def langchain_text() -> None:
        answer = chat.invoke(QUESTION)
        assert "Paris" in answer.content, answer
        assert answer.usage_metadata["output_tokens"] > 0

    def langchain_stream() -> None:
        pieces = [piece.content for piece in chat.stream(QUESTION)]
        assert len(pieces) > 3
        assert "Paris" in "".join(pieces)

    def langchain_stop() -> None:
        assert chat.invoke(QUESTION, stop=[" of"]).content == "The capital"

    def langchain_schema() -> None:
        city = longer.with_structured_output(City, method="json_schema").invoke("A city, please.")
        assert isinstance(city, City), city

    def langchain_tool() -> None:
        bound = longer.bind_tools([weather], tool_choice="get_weather")
        (call,) = bound.invoke("Weather in Paris?").tool_calls
        assert call["name"] == "get_weather"

    def langchain_logprobs() -> None:
        answer = chat.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
        assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2

    def litellm_text() -> None:
        answer = litellm.completion(**request, seed=1)
        assert "Paris" in answer.choices[0].message.content
        assert answer.usage.prompt_tokens > 0

    def litellm_stream() -> None:
        chunks = litellm.completion(**request, stream=True)
        assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    def litellm_many() -> None:
        assert len(litellm.completion(**request, n=2).choices) == 2

    def litellm_schema() -> None:
        answer = litellm.completion(**{**request, "max_tokens": 48}, response_format=City)
        City.model_validate_json(answer.choices[0].message.content)

    def litellm_error() -> None:
        try:
            litellm.completion(**{**request, "max_tokens": 0})
        except litellm.BadRequestError as error:
            assert "max_tokens" in str(error)
        else:
            raise AssertionError("The request was not refused.")

    return {name: function for name, function in locals().items() if name.startswith(("langchain_", "litellm_"))}


def thinking_tests(model: str) -> Tests:
    """Return the tests with a model that thinks and calls tools. All check whole answers, then streamed ones."""
    settings: dict[str, Any] = {"api_key": "none", "model": model, "max_retries": 0}
    question: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    tool_question: list[dict[str, Any]] = [{"role": "user", "content": TOOL_QUESTION}]
    client = OpenAI(base_url=BASE, api_key="none", max_retries=0)
    request = {"model": f"openai/{model}", "api_base": BASE, "api_key": "none"}

    def check_answer(thoughts: str | None, text: str | None) -> None:
        assert thoughts, thoughts
        assert "Paris" in (text or ""), text
        assert thoughts not in (text or "")

    def check_call(name: str, arguments: Any) -> None:
        assert name == "get_weather"
        assert arguments == {"city": "Paris"}

    def openai_reasoning() -> None:
        create = client.chat.completions.create
        answer = create(model=model, messages=question)
        message = answer.choices[0].message.to_dict()
        check_answer(message["reasoning_content"], message["content"])
        assert message["reasoning"] == message["reasoning_content"]
        assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
        again = create(model=model, messages=[*question, message, *question])
        check_answer(again.choices[0].message.to_dict()["reasoning"], again.choices[0].message.content)
        deltas = [chunk.choices[0].delta.to_dict() for chunk in create(model=model, messages=question, stream=True)]
        check_answer(*("".join(delta.get(key) or "" for delta in deltas) for key in ("reasoning_content", "content")))

    def openai_calls() -> None:
        create = client.chat.completions.create
        choice = create(model=model, messages=tool_question, tools=[TOOL]).choices[0]
        [call] = choice.message.tool_calls
        check_call(call.function.name, json.loads(call.function.arguments))
        assert choice.finish_reason == "tool_calls"
        assert choice.message.to_dict()["reasoning"]
        with client.chat.completions.stream(model=model, messages=tool_question, tools=[TOOL]) as stream:
            [call] = stream.get_final_completion().choices[0].message.tool_calls
        check_call(call.function.name, json.loads(call.function.arguments))

    def openai_responses() -> None:
        whole = client.responses.create(model=model, input=QUESTION)
        reasoning, _ = whole.output
        check_answer(reasoning.content[0].text, whole.output_text)
        again = client.responses.create(model=model, input=[*question, *whole.output, *question])
        assert again.output_text
        with client.responses.stream(model=model, input=QUESTION) as stream:
            events = list(stream)
            reasoning, _ = stream.get_final_response().output
        thoughts = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
        assert reasoning.content[0].text == thoughts
        check_answer(thoughts, stream.get_final_response().output_text)

    def langchain_reasoning() -> None:
        chat = ChatDeepSeek(api_base=BASE, **settings)
        answer = chat.invoke(QUESTION)
        check_answer(answer.additional_kwargs["reasoning_content"], answer.content)
        pieces = list(chat.stream(QUESTION))
        thoughts = (piece.additional_kwargs.get("reasoning_content", "") for piece in pieces)
        check_answer("".join(thoughts), "".join(piece.content for piece in pieces))

    def langchain_responses() -> None:
        chat = ChatOpenAI(base_url=BASE, use_responses_api=True, output_version="responses/v1", **settings)
        answer = chat.invoke(QUESTION)
        check_answer(answer.content[0]["content"][0]["text"], answer.text)
        check_answer("none", chat.invoke([("user", QUESTION), answer, ("user", QUESTION)]).text)
        check_answer("none", "".join(piece.text for piece in chat.stream(QUESTION)))

    def langchain_calls() -> None:
        chat = ChatOpenAI(base_url=BASE, **settings).bind_tools([TOOL])
        [call] = chat.invoke(TOOL_QUESTION).tool_calls
        check_call(call["name"], call["args"])
        first, *rest = chat.stream(TOOL_QUESTION)
        [call] = sum(rest, first).tool_calls
        check_call(call["name"], call["args"])

    def litellm_reasoning() -> None:
        message = litellm.completion(**request, messages=question).choices[0].message
        check_answer(message.reasoning_content, message.content)
        deltas = [chunk.choices[0].delta for chunk in litellm.completion(**request, messages=question, stream=True)]
        thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        check_answer(thoughts, "".join(delta.content or "" for delta in deltas))

    def litellm_calls() -> None:
        message = litellm.completion(**request, messages=tool_question, tools=[TOOL]).choices[0].message
        [call] = message.tool_calls
        check_call(call.function.name, json.loads(call.function.arguments))

    def ai_sdk(message: str, mode: str, *tool: str) -> Any:
        command = [node, str(CLIENTS / "ai_sdk.mjs"), BASE, model, message, mode, *tool]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def ai_sdk_reasoning() -> None:
        for mode in ("whole", "stream"):
            answer = ai_sdk(QUESTION, mode)
            check_answer(answer["reasoning"], answer["text"])
            assert answer["reasoningTokens"] > 0

    def ai_sdk_calls() -> None:
        for mode in ("whole", "stream"):
            answer = ai_sdk(TOOL_QUESTION, mode, json.dumps(TOOL))
            [call] = answer["calls"]
            check_call(call["name"], call["arguments"])
            assert answer["finishReason"] == "tool-calls"
            assert answer["reasoning"]

    tests = (openai_reasoning, openai_calls, openai_responses, langchain_reasoning, langchain_responses)
    tests += (langchain_calls, litellm_reasoning, litellm_calls)
    node = shutil.which("node")
    if node is None:
        print("Node.js is missing, so the AI SDK is left out.")
    else:
        tests += (ai_sdk_reasoning, ai_sdk_calls)
    return {f"{test.__name__} ({model})": test for test in tests}


def run(tests: Tests) -> int:
    """Run the tests; return the number of failures."""
    failed = 0
    for name, function in tests.items():
        try:
            function()
        except Exception:  # noqa: BLE001 - any exception is a failure
            failed += 1
            print(f"FAILED  {name}")
            traceback.print_exc()
        else:
            print(f"ok      {name}", flush=True)
    return failed


def main() -> int:
    """Run all tests; return the exit status."""
    failed = 0
    for name in THINKING_MODELS:
        with server("-m", "tests.clients.thinking_server", name, str(PORT)) as model:
            failed += run(thinking_tests(model))
    with server(*SMALL_MODEL) as model:
        failed += run(client_tests(model))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
